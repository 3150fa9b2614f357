//! Tests of the pair's decisions: the real `step` in a simulated world.

mod database;
mod drawing;
mod explore;
mod fair;
mod judge;
mod mutants;
mod named;
mod play;
mod random;
mod traps;
mod traps_more;
mod world;

use crate::ha::register::OnPeerLoss;

#[test]
fn a_new_pair_comes_into_sync() {
    let world = fair::paired(OnPeerLoss::Witness(world::W), world::settings());
    assert_eq!(world.violation, None);
    let hold = fair::paired(OnPeerLoss::Hold, world::settings());
    assert_eq!(hold.violation, None);
}

#[test]
fn service_comes_back() {
    let world = fair::paired(OnPeerLoss::Witness(world::W), world::settings());
    assert_eq!(fair::all_recover(&world), Ok(()));
}
