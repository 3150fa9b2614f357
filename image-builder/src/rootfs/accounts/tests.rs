//! Declarations, ids that stay, and ids that must not change.

use super::*;
use crate::tree::Entry;

fn tree(files: &[(&str, &str)]) -> Tree {
    let origin = "base-passwd".into();
    let mut tree = Tree::new(&origin);
    let passwd = "root:*:0:0:root:/root:/bin/bash\nman:*:6:12:man:/var/cache/man:/usr/sbin/nologin\n";
    tree.add(MASTERS[0], Entry::text(passwd, &origin)).unwrap();
    tree.add(MASTERS[1], Entry::text("root:*:0:\nman:*:12:\nshadow:*:42:\nsudo:*:27:\n", &origin)).unwrap();
    for (path, text) in files {
        tree.add(path, Entry::text(text, &"p".into())).unwrap();
    }
    tree
}

fn collect(files: &[(&str, &str)], people: &[User]) -> Result<Accounts> {
    Accounts::collect(&tree(files), &[], people)
}

fn none() -> BTreeMap<String, u32> {
    BTreeMap::new()
}

fn person(name: &str, groups: &[&str]) -> User {
    User {
        name: name.into(),
        groups: groups.iter().map(|g| (*g).to_owned()).collect(),
        shell: "/bin/bash".into(),
        password_hash: None,
        ssh_keys: vec!["ssh-ed25519 AAAA x".into()],
    }
}

#[test]
fn writes_all_four_files() {
    let file = (
        "/usr/lib/sysusers.d/x.conf",
        "# c\nu! sshd - \"sshd user\" /run/sshd\nu net 998:man -\ng kvm 103\nm net kvm\n",
    );
    let tree_before = tree(&[file]);
    let accounts = Accounts::collect(&tree_before, &[], &[person("op", &["sudo"])]).unwrap();
    let ids = accounts.allocate(&none(), &none()).unwrap();
    let mut tree = tree_before;
    accounts.write(&mut tree, &ids).unwrap();
    let text = |path: &str| String::from_utf8(tree.file(path).unwrap().bytes(9999).unwrap()).unwrap();
    assert_eq!(
        text("/etc/passwd"),
        "root:x:0:0:root:/root:/bin/bash\nman:x:6:12:man:/var/cache/man:/usr/sbin/nologin\n\
         net:x:998:12::/:/usr/sbin/nologin\nsshd:x:999:999:sshd user:/run/sshd:/usr/sbin/nologin\n\
         op:x:1000:1000::/home/op:/bin/bash\n"
    );
    assert_eq!(
        text("/etc/group"),
        "root:x:0:\nman:x:12:\nsudo:x:27:op\nshadow:x:42:\nkvm:x:103:net\nsshd:x:999:\nop:x:1000:\n"
    );
    assert!(text("/etc/shadow").contains("sshd:!*::0:99999:7:::\nop:*::0:99999:7:::\n"));
    assert_eq!(&*tree.get("/etc/shadow").unwrap().group, "shadow");
    assert_eq!(text("/etc/ssh/authorized_keys.d/op"), "ssh-ed25519 AAAA x\n");
    assert_eq!(text("/usr/lib/tmpfiles.d/farhold-users.conf"), "d /var/home/op 0700 op op -\n");
}

#[test]
fn ids_of_a_lock_stay_and_are_never_given_again() {
    let a = collect(&[("/usr/lib/sysusers.d/x.conf", "u b\nu z\n")], &[]).unwrap();
    let first = a.allocate(&none(), &none()).unwrap();
    assert_eq!((first.uids["b"], first.uids["z"]), (999, 998));
    // A new name that sorts first, and an old name that is gone.
    let b = collect(&[("/usr/lib/sysusers.d/x.conf", "u a\nu z\n")], &[]).unwrap();
    let second = b.allocate(&first.uids, &first.gids).unwrap();
    assert_eq!((second.uids["a"], second.uids["b"], second.uids["z"]), (997, 999, 998));
    let error = b.ids(&first.uids, &first.gids).unwrap_err().to_string();
    assert_eq!(
        error,
        "the lock has no id for user a, group a; `farhold lock` gives them one and keeps all others"
    );
}

#[test]
fn a_changed_or_shared_id_is_an_error() {
    let accounts = collect(&[("/usr/lib/sysusers.d/x.conf", "u a 500\n")], &[]).unwrap();
    let locked = BTreeMap::from([("a".to_owned(), 501)]);
    let error = accounts.allocate(&locked, &none()).unwrap_err().to_string();
    assert!(error.starts_with(
        "user `a` has id 501 in the lock and is declared with 500 (by /usr/lib/sysusers.d/x.conf)"
    ));
    let taken = BTreeMap::from([("gone".to_owned(), 500)]);
    let error = accounts.allocate(&taken, &none()).unwrap_err().to_string();
    assert_eq!(error, "users `a` (by /usr/lib/sysusers.d/x.conf) and `gone` both have id 500");
    let two = collect(&[("/usr/lib/sysusers.d/x.conf", "u a 500\nu a 501\n")], &[]).unwrap_err();
    assert!(format!("{two:#}").contains("group `a` has id 500"), "{two:#}");
}

#[test]
fn bad_declarations_name_file_and_line() {
    for (line, expected) in [
        ("x a", "type `x` is none of u, g, m, r"),
        ("u", "needs a type and a name"),
        ("u a:b", "`a:b` cannot name a user"),
        ("u a ten", "id `ten` is not a number"),
        ("u a - \"open", "a quote does not end"),
    ] {
        let error = format!("{:#}", collect(&[("/usr/lib/sysusers.d/x.conf", line)], &[]).unwrap_err());
        assert!(
            error.starts_with("/usr/lib/sysusers.d/x.conf: sysusers line") && error.contains(expected),
            "{error}"
        );
    }
    let error = collect(&[], &[person("op", &["wheel"])]).unwrap_err().to_string();
    assert_eq!(error, "user `op`: the image has no group `wheel`; it has man, op, root, shadow, sudo");
    let error = collect(&[], &[person("man", &[])]).unwrap_err().to_string();
    assert!(error.contains("is a system account by base-passwd"), "{error}");
}
