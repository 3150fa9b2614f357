//! New announcements for a release that exists: channels, sites, freshness, rotation and rescue.

use super::{Desk, SIGNED_S, tree};
use crate::release::announce::{Changes, announce};
use crate::release::folder::ANNOUNCE;
use crate::release::keys::KeyFolder;
use formats::arch::Arch;
use formats::frame::Scope;
use formats::trust::{self, Accepted, Device, Rank, Refusal, TimeWatermark, Verdict};
use std::fs;

const DAY_S: u32 = 86_400;
const DEVICE: Device<'_> =
    Device { product: "edge", board: "vm", arch: Arch::X86_64, channel: 0, site: Some("north"), id: "n-1" };

impl Desk {
    fn announce(&self, name: &str, changes: &Changes, signed_s: u32) -> Result<String, String> {
        let standing = announce(&self.at(name), changes, &self.keys, signed_s);
        let text = |error: anyhow::Error| {
            format!("{error:#}").replace(&format!("{}/", self.folder.path().display()), "")
        };
        standing.map(|standing| format!("{} {}", standing.rank, standing.role)).map_err(text)
    }

    /// What a device says that accepted sequence 6 and knows that `now_s` has come.
    fn judged(&self, name: &str, device: &Device<'_>, now_s: u32) -> Result<Verdict, Refusal> {
        let root = self.keys.root();
        let frame = fs::read(self.at(name).join(ANNOUNCE)).unwrap();
        let verified = trust::authenticate(&frame, root)?;
        let accepted = Some(Accepted { rank: Rank { root_version: 1, sequence: 6 }, manifest: None });
        trust::judge(&verified, device, accepted, TimeWatermark::restore(now_s, root), None)
    }
}

#[test]
fn a_canary_becomes_stable_without_building_again() {
    let desk = Desk::new();
    desk.make("release", 7).unwrap();
    let before = tree(&desk.at("release"));
    let canary = Changes { channel: Some(1), ..Changes::default() };
    assert_eq!(desk.announce("release", &canary, SIGNED_S), Ok("1.7 release".into()));
    assert!(matches!(
        desk.judged("release", &DEVICE, SIGNED_S),
        Err(Refusal::WrongChannel { is: 1, follows: 0 })
    ));
    let one_site = Changes { channel: Some(0), scope: Some(Scope::site("south")), ..Changes::default() };
    desk.announce("release", &one_site, SIGNED_S).unwrap();
    assert_eq!(desk.judged("release", &DEVICE, SIGNED_S), Err(Refusal::WrongScope("site")));
    let all = Changes { scope: Some(Scope::All), ..Changes::default() };
    desk.announce("release", &all, SIGNED_S).unwrap();
    assert_eq!(desk.judged("release", &DEVICE, SIGNED_S), Ok(Verdict::Newer));
    // The same announcement as at first: nothing else in the folder changed.
    assert_eq!(tree(&desk.at("release")), before);
    assert_eq!(
        desk.announce("release", &Changes::default(), SIGNED_S),
        Err("release would be announced as 1.7 again, and devices would see nothing new: give a higher --sequence".into())
    );
    let higher = Changes { sequence: Some(8), ..Changes::default() };
    assert_eq!(desk.announce("release", &higher, SIGNED_S), Ok("1.8 release".into()));
}

#[test]
fn an_expired_announcement_is_signed_afresh() {
    let desk = Desk::new();
    desk.make("release", 7).unwrap();
    let two_days = Changes { validity_h: Some(48), sequence: Some(8), ..Changes::default() };
    desk.announce("release", &two_days, SIGNED_S).unwrap();
    let later = SIGNED_S + 10 * DAY_S;
    let frozen = Verdict::PossiblyFrozen { since_s: SIGNED_S + 2 * DAY_S };
    assert_eq!(desk.judged("release", &DEVICE, later), Ok(frozen));
    assert_eq!(desk.announce("release", &Changes::default(), later), Ok("1.8 release".into()));
    assert_eq!(desk.judged("release", &DEVICE, later), Ok(Verdict::Newer));
}

#[test]
fn a_rescue_is_signed_by_root_keys_and_held_by_nothing() {
    let desk = Desk::new();
    desk.make("release", 7).unwrap();
    let rescue = Changes { validity_h: Some(1), rescue: true, sequence: Some(9), ..Changes::default() };
    assert_eq!(desk.announce("release", &rescue, SIGNED_S), Ok("1.9 root".into()));
    assert_eq!(desk.judged("release", &DEVICE, SIGNED_S + 4 * 365 * DAY_S), Ok(Verdict::Newer));
    super::verify(&desk.at("release"), &super::Viewpoint::default(), &crate::progress::Progress::quiet())
        .unwrap();
    // Release keys cannot make one: without root keys at hand it waits for their holders.
    for name in ["dev-root-1.pem", "dev-root-2.pem", "dev-root-3.pem"] {
        fs::remove_file(desk.at("keys").join(name)).unwrap();
    }
    let again = Changes { sequence: Some(10), ..rescue };
    let standing = announce(&desk.at("release"), &again, &desk.keys, SIGNED_S).unwrap();
    assert_eq!((standing.role, standing.signatures, standing.threshold), ("root", 0, 2));
    assert!(matches!(
        desk.judged("release", &DEVICE, SIGNED_S),
        Err(Refusal::Signatures { role: "root", root_version: 1, .. })
    ));
}

#[test]
fn after_a_rotation_the_release_is_announced_under_the_new_root() {
    let mut desk = Desk::new();
    desk.make("release", u32::MAX).unwrap();
    let stranger = KeyFolder::create(&desk.at("others"), super::COUNTS, SIGNED_S).unwrap();
    desk.keys.rotate(&["release-1".into()], SIGNED_S + 1).unwrap();
    assert!(matches!(
        desk.judged("release", &DEVICE, SIGNED_S),
        Err(Refusal::RootReplaced { trusted: 2, is: 1 })
    ));
    let first = Changes { sequence: Some(1), ..Changes::default() };
    assert_eq!(desk.announce("release", &first, SIGNED_S + 2), Ok("2.1 release".into()));
    assert_eq!(desk.judged("release", &DEVICE, SIGNED_S), Ok(Verdict::Newer));
    assert_eq!(fs::read(desk.at("release").join("roots")).unwrap(), desk.keys.roots());
    let refused = announce(&desk.at("release"), &first, &stranger, SIGNED_S + 3).unwrap_err();
    assert!(
        format!("{refused:#}").ends_with(
            "is under root version 2, but the keys' root documents end with another version 1: use the keys that follow"
        ),
        "{refused:#}"
    );
}
