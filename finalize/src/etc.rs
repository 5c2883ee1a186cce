//! Merging /etc: three trees in, one out. Scan, plan, apply: reading yields values, deciding is pure, writing is dumb.

pub mod scan;
pub mod tree;
