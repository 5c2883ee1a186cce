//! Finalizes a staged composefs deployment at shutdown: merges /etc, then exchanges the boot entries.

pub mod boot;
pub mod cli;
pub mod cmdline;
pub mod digest;
pub mod etc;
pub mod layout;
pub mod staged;
pub mod sys;
