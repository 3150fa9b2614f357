//! The upper layer of `/etc` from stores that are fresh, filled, hostile or damaged.

use super::*;
use std::os::unix::fs::symlink;
use tempfile::TempDir;

struct Space {
    folder: TempDir,
    notes: Vec<String>,
}

impl Space {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for sub in ["image/ssh", "store"] {
            fs::create_dir_all(folder.path().join(sub)).unwrap();
        }
        fs::set_permissions(folder.path().join("image/ssh"), Permissions::from_mode(0o750)).unwrap();
        Self { folder, notes: Vec::new() }
    }
    fn at(&self, path: &str) -> std::path::PathBuf {
        self.folder.path().join(path)
    }
    fn store(&self, path: &str, text: &str) {
        let path = self.at("store").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    fn upper(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.at("upper").join(path)).ok()
    }
    /// One boot: a fresh layer, filled.
    fn boot(&mut self) -> EtcFacts {
        if self.at("upper").exists() {
            fs::remove_dir_all(self.at("upper")).unwrap();
        }
        fs::create_dir(self.at("upper")).unwrap();
        self.notes.clear();
        let (image, store, upper) = (self.at("image"), self.at("store"), self.at("upper"));
        fill(&Paths { image: &image, store: &store, upper: &upper }, "edge-%\n", &mut self.notes).unwrap()
    }
}

#[test]
fn an_identity_is_made_once_and_kept() {
    let mut space = Space::new();
    assert!(space.boot().identity_made);
    let (id, name) = (space.upper("machine-id").unwrap(), space.upper("hostname").unwrap());
    assert!(identity::is_machine_id(&id) && name.starts_with("edge-") && !name.contains('%'));
    let again = space.boot();
    assert_eq!((again.identity_made, again.files), (false, vec!["machine-id".to_owned()]));
    assert_eq!((space.upper("machine-id").unwrap(), space.upper("hostname").unwrap()), (id, name));
    assert_eq!(space.notes, Vec::<String>::new());
}

#[test]
fn a_torn_identity_is_replaced_and_named() {
    let mut space = Space::new();
    space.store("machine-id", "0123");
    assert!(space.boot().identity_made);
    assert!(space.notes[0].contains("store/machine-id into /etc: it is no machine id"), "{:?}", space.notes);
    assert!(!space.boot().identity_made);
}

#[test]
fn an_operators_host_name_wins_and_a_bad_one_is_left_out() {
    let mut space = Space::new();
    space.store("hostname", "pump-7\n");
    space.boot();
    assert_eq!(space.upper("hostname").unwrap(), "pump-7\n");
    space.store("hostname", "pump 7\n");
    space.boot();
    assert!(space.notes[0].contains("host name `pump 7`"), "{:?}", space.notes);
}

#[test]
fn only_plain_small_files_of_the_list_are_taken() {
    let mut space = Space::new();
    space.store("systemd/network/10-lan.network", "[Match]\n");
    space.store("passwd", "root::0:0::/:/bin/sh\n");
    space.store("ssh/sshd_config", "PermitRootLogin yes\n");
    space.store("wpa_supplicant/big.conf", &"x".repeat(allow::FILE_MAX as usize + 1));
    symlink("/etc/shadow", space.at("store/systemd/network/20-link.network")).unwrap();
    fs::create_dir(space.at("store/systemd/network/30-folder.network")).unwrap();
    let facts = space.boot();
    assert_eq!(facts.files, ["systemd/network/10-lan.network"]);
    assert_eq!(space.upper("passwd"), None);
    assert_eq!(space.notes.len(), 3, "{:?}", space.notes);
}

#[test]
fn folders_of_the_layer_have_the_images_mode_and_keys_stay_secret() {
    let mut space = Space::new();
    space.store("ssh/ssh_host_ed25519_key", "secret");
    fs::set_permissions(space.at("store/ssh/ssh_host_ed25519_key"), Permissions::from_mode(0o600)).unwrap();
    space.boot();
    let mode = |path: &str| fs::metadata(space.at(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("upper/ssh"), mode("upper/ssh/ssh_host_ed25519_key")), (0o750, 0o600));
}

#[test]
fn a_store_that_cannot_be_written_still_gives_an_identity() {
    let mut space = Space::new();
    fs::remove_dir(space.at("store")).unwrap();
    fs::write(space.at("store"), "a file where the store should be").unwrap();
    assert!(space.boot().identity_made);
    assert!(
        space.notes.iter().any(|note| note.contains("the machine id of this boot is not kept")),
        "{:?}",
        space.notes
    );
    assert!(identity::is_machine_id(&space.upper("machine-id").unwrap()));
}
