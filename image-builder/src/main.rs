//! `farhold`: bakes profiles into signed immutable images and releases.

fn main() -> std::process::ExitCode {
    image_builder::cli::main()
}
