//! Tests on real files, in temporary directories.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stdout, reason = "tests print how much they tried")]

mod arrows;
mod bad_boot_files;
mod beside_bootc;
mod boot_swap;
mod bootc_files;
mod calls;
mod counting;
mod counting_crash;
mod counting_forms;
mod crash;
mod discovery;
mod endings;
mod esps;
mod etc_accounts;
mod etc_ahead;
mod etc_carried;
mod etc_cases;
mod etc_generated;
mod etc_labels;
mod etc_laws;
mod etc_merge;
mod etc_numbers;
mod etc_policy;
mod etc_preview;
mod etc_program;
mod etc_states;
mod etc_status;
mod etc_traps;
mod finalize;
mod foreign;
mod frozen;
mod fuzz;
mod interrupted;
mod machine;
mod order;
mod pins;
mod prepared;
mod programs;
mod tidy;
mod units;
mod words;
