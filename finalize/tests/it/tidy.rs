//! The house rules that a compiler does not know, for both crates and the scripts: short files and functions, few
//! parameters, `unsafe` and ambient paths only where they belong, pure modules without I/O, no waiting by the clock,
//! programs run in the words in which one would type them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use syn::{Signature, spanned::Spanned, visit::Visit};

/// Lines of a Rust file; of a function from its signature to its brace; of a script.
const FILE: usize = 400;
const FUNCTION: usize = 70;
const SCRIPT: usize = 50;
const PARAMETERS: usize = 4;

/// Where a path of the machine becomes a directory capability.
const AMBIENT: &[&str] = &["finalize/src/host.rs", "image-tools/src/oci/write.rs"];

/// Where a program is not run in the words in which one would type it (`xshell::cmd`): what is installed runs one program,
/// and takes no crate for it.
const BY_HAND: &[&str] = &["finalize/src/sys/fat.rs", "finalize/src/sys/unit.rs"];

/// Modules that decide, and neither read nor write.
const PURE: &[&str] = &[
    "finalize/src/etc/accounts.rs",
    "finalize/src/etc/merge.rs",
    "finalize/src/etc/plan.rs",
    "finalize/src/etc/plan/choose.rs",
    "finalize/src/etc/plan/decide.rs",
    "finalize/src/etc/plan/records.rs",
    "finalize/src/etc/policy.rs",
    "finalize/src/etc/tree.rs",
    "finalize/src/boot/bls.rs",
    "finalize/src/boot/count.rs",
    "finalize/src/boot/count/script.rs",
    "finalize/src/boot/order.rs",
    "finalize/src/boot/order/counter.rs",
    "finalize/src/boot/order/file_name.rs",
    "finalize/src/boot/order/grub.rs",
    "finalize/src/boot/order/item.rs",
    "finalize/src/boot/order/pin.rs",
    "finalize/src/boot/order/systemd_boot.rs",
    "finalize/src/boot/order/titles.rs",
    "finalize/src/boot/order/version.rs",
    "finalize/src/cmdline.rs",
    "finalize/src/digest.rs",
    "image-tools/src/deployment.rs",
    "image-tools/src/deployment/entries.rs",
    "image-tools/src/deployment/grub.rs",
    "image-tools/src/deployment/state.rs",
    "image-tools/src/deployment/systemd_boot.rs",
    "image-tools/src/node.rs",
    "image-tools/src/plan.rs",
    "image-tools/src/plan/print.rs",
];
const IO: &[&str] = &["std::fs", "cap_std", "rustix", "sys::", "libc", "std::process", "std::env", "std::net"];

struct Source {
    name: String,
    text: String,
}

impl Source {
    fn is_test(&self) -> bool {
        self.name.contains("/tests/") || self.name.contains("/benches/")
    }

    /// Whether it makes a command word by word, in a macro too; comments and strings are not meant.
    fn runs_by_hand(&self) -> bool {
        let tokens = || self.text.parse::<proc_macro2::TokenStream>().unwrap().to_string();
        // Not to be found in this file itself.
        self.text.contains("Command") && tokens().contains(&["Command", "::", "new"].join(" "))
    }

    /// Complaints about one file.
    fn wrong(&self) -> Vec<String> {
        let mut wrong = vec![];
        let lines = self.text.lines().count();
        if lines >= FILE {
            wrong.push(format!("{lines} lines, of at most {}", FILE - 1));
        }
        if !self.text.trim_start_matches("#![no_main]\n").starts_with("//!") {
            wrong.push("does not begin with `//!` and why it exists".to_owned());
        }
        let tree = syn::parse_file(&self.text).unwrap();
        let mut found = Found::default();
        found.visit_file(&tree);
        let wide = found.wide.iter().filter(|_| !self.is_test());
        wrong.extend(wide.map(|name| format!("{name} has more than {PARAMETERS} parameters: make a struct")));
        wrong.append(&mut found.wrong);
        if found.uses_unsafe && !self.name.contains("/src/sys/") {
            wrong.push("`unsafe` outside of sys".to_owned());
        }
        if found.names.iter().any(|name| name == "sleep") {
            wrong.push("waits by the clock: wait for the thing itself".to_owned());
        }
        if found.names.iter().any(|name| name == "ambient_authority") {
            let allowed = self.is_test() || AMBIENT.contains(&self.name.as_str());
            wrong.extend((!allowed).then(|| "takes a path of the machine: take a `Dir`".to_owned()));
        }
        if self.runs_by_hand() && !BY_HAND.contains(&self.name.as_str()) {
            wrong.push("runs a program by hand: write it by `cmd!`, and make the `Command` of that".to_owned());
        }
        if PURE.contains(&self.name.as_str()) {
            let code = self.text.split("#[cfg(test)]").next().unwrap();
            let code = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            let used = code.flat_map(|line| IO.iter().filter(move |io| line.contains(**io)));
            wrong.extend(used.map(|io| format!("pure, but it names {io}")));
        }
        wrong
    }
}

/// What a syntax tree has of what is looked for.
#[derive(Default)]
struct Found {
    wrong: Vec<String>,
    wide: Vec<String>,
    names: Vec<String>,
    uses_unsafe: bool,
}

impl Found {
    fn function(&mut self, signature: &Signature, whole: proc_macro2::Span) {
        let lines = whole.end().line - signature.fn_token.span.start().line + 1;
        if lines > FUNCTION {
            self.wrong.push(format!("{} has {lines} lines, of at most {FUNCTION}", signature.ident));
        }
        if signature.inputs.iter().filter(|input| matches!(input, syn::FnArg::Typed(_))).count() > PARAMETERS {
            self.wide.push(signature.ident.to_string());
        }
        self.uses_unsafe |= signature.unsafety.is_some();
    }
}

impl<'ast> Visit<'ast> for Found {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.function(&function.sig, function.span());
        syn::visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.function(&function.sig, function.span());
        syn::visit::visit_impl_item_fn(self, function);
    }

    fn visit_expr_unsafe(&mut self, block: &'ast syn::ExprUnsafe) {
        self.uses_unsafe = true;
        syn::visit::visit_expr_unsafe(self, block);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        self.uses_unsafe |= item.unsafety.is_some();
        syn::visit::visit_item_impl(self, item);
    }

    fn visit_ident(&mut self, name: &'ast proc_macro2::Ident) {
        self.names.push(name.to_string());
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The files of both crates and of `hack`, without what a build leaves.
fn files(below: &str) -> Vec<PathBuf> {
    let built = |entry: &walkdir::DirEntry| matches!(entry.file_name().to_str(), Some("target" | "corpus"));
    let walk = walkdir::WalkDir::new(root().join(below)).sort_by_file_name();
    let entries = walk.into_iter().filter_entry(|entry| !built(entry)).map(Result::unwrap);
    entries.filter(|entry| entry.file_type().is_file()).map(walkdir::DirEntry::into_path).collect()
}

fn read(path: &Path) -> Source {
    let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    Source { name, text: fs::read_to_string(path).unwrap() }
}

#[test]
fn every_rust_file_keeps_the_house_rules() {
    let paths = ["finalize", "image-tools"].into_iter().flat_map(files);
    let sources: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|ext| ext == "rs")).map(|p| read(&p)).collect();
    assert!(sources.len() > 60, "only {} files found", sources.len());
    for listed in AMBIENT.iter().chain(PURE) {
        assert!(sources.iter().any(|source| source.name == *listed), "{listed} is gone: take it off the list");
    }
    for listed in AMBIENT {
        let takes = sources.iter().any(|it| it.name == *listed && it.text.contains("ambient_authority"));
        assert!(takes, "{listed} takes no path of the machine any more: take it off the list");
    }
    for listed in BY_HAND {
        let runs = sources.iter().any(|it| it.name == *listed && it.runs_by_hand());
        assert!(runs, "{listed} runs no program by hand any more: take it off the list");
    }
    let wrong = |source: &Source| source.wrong().into_iter().map(|what| format!("{}: {what}", source.name)).collect();
    let wrong: Vec<String> = sources.iter().flat_map(|source| -> Vec<String> { wrong(source) }).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_script_is_short_and_stops_at_errors() {
    for source in files("hack").iter().map(|path| read(path)).filter(|source| source.text.starts_with("#!")) {
        let lines = source.text.lines().count();
        assert!(lines <= SCRIPT, "{}: {lines} lines, of at most {SCRIPT}", source.name);
        let stops = ["\nset -eu", "\nexec ", "#!/usr/bin/env python3\n"].iter().any(|how| source.text.contains(how));
        assert!(stops, "{}: goes on after errors", source.name);
    }
}

#[test]
fn the_rules_catch_what_they_are_for() {
    let check = |name: &str, text: &str, want: &str| {
        let wrong = Source { name: name.to_owned(), text: text.to_owned() }.wrong().join("\n");
        assert!(wrong.contains(want), "{name}: {wrong:?} lacks {want:?}");
    };
    let name = "finalize/src/cmdline.rs";
    check(name, "fn f() {}\n", "does not begin");
    check(name, &format!("//! x\n{}", "\n".repeat(FILE)), "lines, of at most 399");
    check(name, &format!("//! x\nfn f() {{{}}}\n", "\n".repeat(FUNCTION)), "f has 71 lines");
    check(name, "//! x\nfn f(a: u8, b: u8, c: u8, d: u8, e: u8) {}\n", "more than 4 parameters");
    check(name, "//! x\nfn f() { unsafe { g() } }\n", "outside of sys");
    check(name, "//! x\nfn f() { std::thread::sleep(x) }\n", "by the clock");
    check(name, "//! x\nfn f() { g(ambient_authority()) }\n", "path of the machine");
    check(name, "//! x\nfn f() { g!(Command::\nnew(x)) }\n", "by hand");
    check(name, "//! x\nuse rustix::fs;\n", "names rustix");
    let text = "//! x\n// sleep, rustix, Command::new()\nfn f() { g(\"Command::new()\") }\n".to_owned();
    let fine = Source { name: name.to_owned(), text };
    assert_eq!(fine.wrong(), Vec::<String>::new());
}
