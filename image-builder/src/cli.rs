//! The command line: which subcommands there are. Each is a struct with `run` in its own file below `cmd`.

use crate::cmd;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Bakes profiles into signed, immutable A/B images.
#[derive(Parser)]
#[command(name = "farhold", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Announce(cmd::announce::AnnounceCmd),
    Broadcast(cmd::broadcast::BroadcastCmd),
    Check(cmd::check::CheckCmd),
    Schema(cmd::schema::SchemaCmd),
    Lock(cmd::lock::LockCmd),
    Build(cmd::build::BuildCmd),
    Plan(cmd::plan::PlanCmd),
    Explain(cmd::plan::ExplainCmd),
    Cache(cmd::cache::CacheCmd),
    Delta(cmd::delta::DeltaCmd),
    Devices(cmd::devices::DevicesCmd),
    Flash(cmd::flash::FlashCmd),
    Fleet(cmd::fleet::FleetCmd),
    Forecast(cmd::forecast::ForecastCmd),
    Keys(cmd::keys::KeysCmd),
    Lab(cmd::lab::LabCmd),
    Publish(cmd::publish::PublishCmd),
    Push(cmd::push::PushCmd),
    Serve(cmd::serve::ServeCmd),
    Sign(cmd::sign::SignCmd),
    Tools(cmd::tools::ToolsCmd),
    Usb(cmd::usb::UsbCmd),
    Verify(cmd::verify::VerifyCmd),
}

/// Runs the command line of this process; errors go to standard error as one chain.
pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Announce(announce) => announce.run(),
        Command::Broadcast(broadcast) => broadcast.run(),
        Command::Check(check) => check.run(),
        Command::Schema(schema) => schema.run(),
        Command::Lock(lock) => lock.run(),
        Command::Build(build) => build.run(),
        Command::Plan(plan) => plan.run(),
        Command::Explain(explain) => explain.run(),
        Command::Cache(cache) => cache.run(),
        Command::Delta(delta) => delta.run(),
        Command::Devices(devices) => devices.run(),
        Command::Flash(flash) => flash.run(),
        Command::Fleet(fleet) => fleet.run(),
        Command::Forecast(forecast) => forecast.run(),
        Command::Keys(keys) => keys.run(),
        Command::Lab(lab) => lab.run(),
        Command::Publish(publish) => publish.run(),
        Command::Push(push) => push.run(),
        Command::Serve(serve) => serve.run(),
        Command::Sign(sign) => sign.run(),
        Command::Tools(tools) => tools.run(),
        Command::Usb(usb) => usb.run(),
        Command::Verify(verify) => verify.run(),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("farhold: {error:#}");
            ExitCode::FAILURE
        }
    }
}
