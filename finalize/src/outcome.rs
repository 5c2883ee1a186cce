//! How a finalization ended, with everything that is known of it.

use crate::{
    digest::DeploymentId,
    record::{Ending, Record},
};

/// How a finalization ended.
#[derive(Debug)]
pub enum Outcome {
    /// No deployment is staged.
    NothingStaged,
    /// The deployment is staged, and must not be finalized yet.
    Locked(DeploymentId),
    /// The marker of the deployment was removed: the update is forgotten.
    Cancelled(DeploymentId),
    /// A finalization was made, or refused; the record's `outcome` says which.
    Recorded(Box<Record>),
    /// Something failed.
    Failed(Failure),
}

/// A finalization that failed. The error's outermost message says what boots next.
#[derive(Debug)]
pub struct Failure {
    /// The record, where there is a machine to record for.
    pub record: Option<Box<Record>>,
    /// Everything that failed.
    pub error: anyhow::Error,
}

impl Outcome {
    /// The outcome as JSON: the record where there is one, else an object with the same keys `schema`, `outcome`, `to`, `error`.
    ///
    /// # Errors
    ///
    /// None that a record can cause.
    pub fn to_json(&self) -> serde_json::Result<serde_json::Value> {
        let short = |outcome: &str, to: Option<&DeploymentId>| serde_json::json!({ "schema": crate::record::SCHEMA, "outcome": outcome, "to": to });
        Ok(match self {
            Self::NothingStaged => short("nothing-staged", None),
            Self::Locked(id) => short("locked", Some(id)),
            Self::Cancelled(id) => short("cancelled", Some(id)),
            Self::Recorded(record) | Self::Failed(Failure { record: Some(record), .. }) => {
                serde_json::to_value(record)?
            }
            Self::Failed(Failure { record: None, error }) => {
                let mut json = short("failed", None);
                json["error"] = error.chain().map(ToString::to_string).collect();
                json
            }
        })
    }

    /// 0 done, or nothing to do; 1 failed; 3 refused by policy.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Recorded(record) if record.outcome == Ending::Refused => 3,
            _ => 0,
        }
    }
}
