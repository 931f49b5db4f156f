//! The `wormhole` command.

fn main() -> std::process::ExitCode {
    wormhole::cli::main()
}
