//! `farhold-agent`: the daemon and the command on the device.
//!
//! Data flows `early` (before systemd: state partition, `/var`, `/etc`) → `run` (the loop: event → `step` → `store` →
//! effects) → `serve` and `render` (what others see). `update` fetches and installs releases, `updates` joins it to the
//! loop. `io` holds one outside thing per file. Pure: `step`, `findings`,
//! `render`, `early/decide`, `early/allow`.

mod away;
mod cli;
mod early;
mod fetch_file;
mod findings;
mod host_keys;
mod io;
mod kubernetes;
mod observe;
mod offline;
mod pair;
mod pair_text;
mod pair_view;
mod pairing;
mod render;
mod reports;
mod restart;
mod run;
mod serve;
mod step;
mod stick;
mod store;
mod update;
mod updates;

fn main() -> std::process::ExitCode {
    cli::main()
}
