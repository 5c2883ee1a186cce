//! A machine without a system, whose firmware speaks: saved, and refused where it cannot go on.

use std::fs;

use crate::layout::run;

#[test]
fn what_is_no_saved_machine_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("disk"), vec![0; 1 << 20]).unwrap();
    fs::write(path("text"), "not a machine").unwrap();
    let boot = |more: &[&str]| run(&[&["boot", &path("disk"), "--quiet", "--log", &path("log")], more].concat());

    let saved = boot(&["--until", "BdsDxe", "--memory", "256", "--save", &path("saved")]);
    assert!(saved.status.success(), "{}", String::from_utf8_lossy(&saved.stderr));
    for (state, memory, want) in [
        ("missing", "256", "save a machine first"),
        ("text", "256", "Not a migration stream"),
        ("saved", "512", "Size mismatch"),
    ] {
        let refused = boot(&["--resume", &path(state), "--memory", memory, "--", "true"]);
        let message = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(1), "{message}");
        assert!(message.contains(&path(state)) && message.contains(want), "{state}: {message}");
    }
    let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["disk", "log", "saved", "text"]);
}
