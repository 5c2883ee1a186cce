//! Boot counting: the new deployment's entry may be started a number of times; when none of these boots was found good, the
//! boot loader starts the old deployment by itself.
//!
//! The counter belongs to the exchange. systemd-boot counts in the name of the entry (the Boot Loader Specification, "Boot
//! Counting"), which gets its counter before it is exchanged. GRUB counts in its environment block, by a script at the head of
//! the menu that is exchanged ([`script`]): that menu begins its own count when GRUB first meets it, so nothing has to be
//! written at two places at once.

pub mod bless;
pub mod forgo;
pub mod script;

use serde::{Deserialize, Serialize};

use super::order::{Counter, Environment, Item};
use crate::digest::DeploymentId;

/// A deployment whose boots are counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// The deployment.
    pub deployment: DeploymentId,
    /// How often it may be started without being found good.
    pub tries: u32,
    /// What tells this count from every other one in GRUB's environment block: no space, no quote.
    pub token: String,
}

/// The largest number of tries: GRUB's language has no arithmetic, so that its script has a branch for each.
pub const MOST: u32 = 9;

impl Trial {
    /// A count for `deployment` that begins in the boot `boot_id`. More than [`MOST`] tries are [`MOST`].
    pub fn new(deployment: DeploymentId, tries: u32, boot_id: Option<&str>) -> Self {
        let boot: String = boot_id.unwrap_or_default().chars().filter(char::is_ascii_alphanumeric).take(12).collect();
        let token = format!("{}-{boot}", deployment.short());
        Self { deployment, tries: tries.min(MOST), token }
    }

    /// Where the count stands by GRUB's environment block; none where the deployment was found good.
    pub fn counter(&self, environment: &Environment) -> Option<Counter> {
        let fresh = Counter { left: self.tries, done: 0 };
        if environment.get(script::TRIAL) != Some(self.token.as_str()) {
            return Some(fresh);
        }
        match environment.get(script::LEFT) {
            Some(script::GOOD) => None,
            Some(left) => left
                .parse()
                .map_or(Some(fresh), |left: u32| Some(Counter { left, done: self.tries.saturating_sub(left) })),
            None => Some(fresh),
        }
    }
}

/// The name of an entry's file with a fresh counter; what is no name of an entry is returned as it is.
pub fn counted(name: &str, tries: u32) -> String {
    let (bare, _) = Counter::split(name);
    match bare.rfind('.') {
        Some(at) if tries > 0 => format!("{}+{tries}{}", &bare[..at], &bare[at..]),
        _ => bare,
    }
}

/// The name of an entry's file without its counter.
pub fn bare(name: &str) -> String {
    Counter::split(name).0
}

/// Whether the loader passes an entry of this name over, as long as another one has tries left.
pub fn is_spent(name: &str) -> bool {
    Counter::split(name).1.is_some_and(|counter| counter.left == 0)
}

/// Gives the lines of a GRUB menu that `menu` counts their counters.
pub fn mark(items: &mut [Item], menu: &str, environment: &Environment) {
    let Some(trial) = script::trial(menu) else { return };
    let counter = trial.counter(environment);
    items.iter_mut().filter(|item| item.deployment.as_ref() == Some(&trial.deployment)).for_each(|item| {
        item.counter = counter;
    });
}

/// Whether the entry that systemd-boot started is the one that it counted (`LoaderEntrySelected`, `LoaderBootCountPath` of the
/// Boot Loader Interface). The second one may survive from a boot that the firmware refused: another entry is started then.
pub fn is_counted(selected: Option<&str>, count_path: Option<&str>) -> bool {
    let name = |path: &str| path.rsplit(['/', '\\']).next().map(bare).unwrap_or_default();
    match (selected, count_path) {
        (Some(selected), Some(path)) => !selected.is_empty() && bare(selected).eq_ignore_ascii_case(&name(path)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_gets_a_fresh_counter_whatever_it_had() {
        for name in ["a.conf", "a+3.conf", "a+2-1.conf", "a+0-3.conf"] {
            assert_eq!(counted(name, 3), "a+3.conf");
            assert_eq!(counted(name, 0), "a.conf");
        }
        assert_eq!(counted("b_1.2-1.EFI", 2), "b_1.2-1+2.EFI");
        assert_eq!([is_spent("a+0-3.conf"), is_spent("a+1-2.conf"), is_spent("a.conf")], [true, false, false]);
    }

    #[test]
    fn what_booted_must_be_what_was_counted() {
        let path = Some("\\loader\\entries\\bootc_x-1-1+2-1.conf");
        assert!(is_counted(Some("bootc_x-1-1.conf"), path));
        assert!(is_counted(Some("BOOTC_X-1-1.conf"), path));
        assert!(is_counted(Some("x.efi"), Some("/EFI/Linux/x+0-3.efi")));
        for (selected, path) in
            [(Some("bootc_x-1-0.conf"), path), (None, path), (Some("x.conf"), None), (Some(""), Some("")), (None, None)]
        {
            assert!(!is_counted(selected, path), "{selected:?} {path:?}");
        }
    }

    #[test]
    fn the_environment_block_says_where_the_count_stands() {
        let trial = Trial::new("ab".repeat(32).parse().unwrap(), 12, Some("01234567-89ab-cdef-0123"));
        assert_eq!((trial.tries, trial.token.as_str()), (9, "abababababab-0123456789ab"));
        let counter = |text: &str| {
            let block = format!("# GRUB Environment Block\n{text}");
            trial.counter(&Environment::parse(block.as_bytes())).map(|counter| (counter.left, counter.done))
        };
        let of = |left: &str| format!("composefs_trial={}\ncomposefs_left={left}\n", trial.token);
        assert_eq!(counter(""), Some((9, 0)));
        assert_eq!(counter("composefs_trial=other\ncomposefs_left=0\n"), Some((9, 0)));
        assert_eq!(
            [counter(&of("7")), counter(&of("0")), counter(&of("x"))],
            [Some((7, 2)), Some((0, 9)), Some((9, 0))]
        );
        assert_eq!(counter(&of("good")), None);
    }
}
