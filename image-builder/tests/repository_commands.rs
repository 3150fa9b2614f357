//! What an operator sees of `keys`, `sign`, `publish`, `verify` and `serve`, when things go well and when they do not: the
//! texts are golden. Nothing here needs a mirror or a cache.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

const FARHOLD: &str = env!("CARGO_BIN_EXE_farhold");

/// A folder for one test.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs a command in the folder, so that paths in its texts are short.
    fn run(&self, words: &str) -> Output {
        let mut command = Command::new(FARHOLD);
        command.args(words.split_ascii_whitespace()).current_dir(self.0.path());
        command.env("SOURCE_DATE_EPOCH", "1795219200").stdin(Stdio::null()).output().unwrap()
    }

    fn ok(&self, words: &str) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn fails(&self, words: &str) -> String {
        let output = self.run(words);
        assert_eq!(output.status.code(), Some(1), "{words}: {}", String::from_utf8_lossy(&output.stdout));
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{words}");
        String::from_utf8(output.stderr).unwrap()
    }
}

#[test]
fn holders_in_different_places_appoint_and_sign() {
    let desk = Desk::new();
    for name in ["ann", "bo", "cy", "dee", "eve", "cat", "mallory"] {
        let said = desk.ok(&format!("keys generate {name}.pem"));
        assert!(said.starts_with(&format!("{name}.pem: public key ")), "{said}");
    }
    let appoint = "keys root roots --root-key ann.pem.pub --root-key bo.pem.pub --root-threshold 2 --release-key \
                   dee.pem.pub --release-key eve.pem.pub --threshold 1 --catalogue-key cat.pem.pub";
    assert_eq!(
        desk.ok(appoint),
        "roots: root version 1, not signed yet; holders of its root keys: farhold sign roots --key FILE\n"
    );
    assert!(desk.ok("sign roots --key ann.pem").ends_with(
        ": not complete: root version 1 is not signed by the root keys of version 1: signed by 1 distinct keys, but the \
         threshold is 2\n"
    ));
    // A new version needs a complete predecessor.
    assert!(desk.fails(appoint).starts_with(
        "farhold: a new version needs a complete predecessor: collect its signatures first: root version 1 is not"
    ));
    assert!(desk.ok("sign roots --key bo.pem").ends_with(": complete\n"));
    assert!(
        desk.fails("sign roots --key mallory.pem")
            .ends_with("is no root key of the newest document or its predecessor: it may not sign this\n")
    );
    let shown: serde_json::Value = serde_json::from_str(&desk.ok("keys show roots --json")).unwrap();
    assert_eq!(
        (&shown["version"], &shown["complete"], &shown["keys"][2]["role"]),
        (&1.into(), &true.into(), &"release".into())
    );
    // Rotation: one root key is replaced; old and new holders sign.
    let replace = appoint.replace("bo.pem", "cy.pem");
    assert_eq!(
        desk.ok(&replace),
        "roots: root version 2, not signed yet; holders of the old and the new root keys: farhold sign roots --key FILE\n"
    );
    desk.ok("sign roots --key ann.pem");
    assert!(desk.ok("sign roots --key cy.pem").contains("not signed by the root keys of version 1"));
    assert!(desk.ok("sign roots --key bo.pem").ends_with(": complete\n"));
    let shown: serde_json::Value = serde_json::from_str(&desk.ok("keys show roots --json")).unwrap();
    assert_eq!((&shown["version"], &shown["versions"]), (&2.into(), &2.into()));
}

#[test]
fn keys_are_kept_and_never_overwritten() {
    let desk = Desk::new();
    assert_eq!(
        desk.ok("keys new keys"),
        "keys: 3 root keys (2 must sign), 3 release keys (2 must sign), 1 catalogue key: all for development only\n"
    );
    assert_eq!(
        desk.fails("keys new keys"),
        "farhold: keys exists: keys are never overwritten, name a new folder\n"
    );
    assert_eq!(
        desk.fails("keys generate keys/dev-root-1.pem"),
        "farhold: write keys/dev-root-1.pem (keys are never overwritten): File exists (os error 17)\n"
    );
    assert_eq!(desk.ok("keys rotate keys --replace release-2"), "keys: root version 2 is in force\n");
    assert_eq!(
        desk.fails("keys rotate keys --replace release-9"),
        "farhold: no key `release-9`: there are root-1 to root-3, release-1 to release-3, catalogue\n"
    );
    let path = desk.path("keys/dev-root-1.pem");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(
        desk.fails("sign keys/roots --key keys/dev-root-1.pem"),
        "farhold: private key keys/dev-root-1.pem has mode 644, but must be 600: run `chmod 600 keys/dev-root-1.pem`\n"
    );
    assert_eq!(
        desk.fails("keys show nowhere"),
        "farhold: no keys at nowhere: run `farhold keys new nowhere` for development keys\n"
    );
}

#[test]
fn publishing_and_serving_nothing_say_what_to_do() {
    let desk = Desk::new();
    std::fs::create_dir(desk.path("empty")).unwrap();
    assert_eq!(
        desk.fails("serve empty"),
        "farhold: empty has nothing to serve: `farhold publish RELEASE --repo empty` puts a release there\n"
    );
    assert_eq!(
        desk.fails("publish nowhere --repo repo"),
        "farhold: publish nowhere to repo: nowhere holds no release: give the folder `release` that `farhold build` wrote\n"
    );
    assert!(!desk.path("repo").exists());
    assert_eq!(
        desk.fails("publish nowhere --repo repo --key empty"),
        "farhold: no keys at empty: run `farhold keys new empty` for development keys\n"
    );
    assert_eq!(
        desk.fails("verify empty"),
        "farhold: announce in empty is not good: open empty/announce: No such file or directory (os error 2)\n"
    );
    let refused = desk.run("publish x --repo y --block 1000");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("must be a power of two from 256 to 4194304"), "{text}");

    std::fs::write(desk.path("empty/announce"), [0; 198]).unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    assert_eq!(
        desk.fails(&format!("serve empty --http {address}")),
        format!(
            "farhold: serve empty: listen on {address}: choose another --http address: Address already in use (os error \
             98)\n"
        )
    );
}
