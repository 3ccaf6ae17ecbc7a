//! The `portreeve` command.

fn main() -> std::process::ExitCode {
    portreeve::cli::run(std::env::args_os())
}
