//! `portreeve gate`: waits until ports and GPUs are free, and becomes the command that is to have them.

use std::{
    ffi::OsString,
    io::{self, Write},
    os::unix::process::CommandExt,
    process::Command,
    time::Duration,
};

use clap::{Args, ValueEnum};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{
    act::interrupt::Interrupt,
    gate::{Gate, Gated, Wishes},
    host::Host,
    judge::gate::{Accepts, Answer},
    pipeline::Event,
    report::{Style, exit, gate, github, journal::Record, line, prometheus},
    sys,
};

use super::{
    Failure, Target, Verbosity, guarded,
    output::{Destination, Format, Output, append_outputs, append_summary},
    put,
};

/// EX_TEMPFAIL of sysexits.h: blocked, and COMMAND was not run.
pub(super) const BLOCKED: u8 = 75;
/// EX_UNAVAILABLE: not known, and COMMAND was not run.
pub(super) const NOT_KNOWN: u8 = 69;

/// How the gate is kept.
#[derive(Debug, Args)]
pub(super) struct Wish {
    /// End orphans first, as 'reap' with the same services, ports and GPUs does
    #[arg(long)]
    reap: bool,
    /// What becomes of a start that is still blocked when the time is up
    #[arg(long, value_enum, default_value_t = Blocked::Fail)]
    on_blocked: Blocked,
    /// Accept a holder that is the service itself: in the unit or the named container where 'runs_in:' says that it
    /// runs, or in the unit that this command was started in
    #[arg(long)]
    allow_ours: bool,
    /// How long to wait for what blocks, such as 30s; overrides 'gate: timeout'
    #[arg(long, value_name = "TIME", value_parser = crate::config::parse_duration)]
    timeout: Option<Duration>,
    /// Become this command when all is free, with everything checked once more right before
    #[arg(last = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Blocked {
    /// It fails, with 1 (before a COMMAND: 75)
    Fail,
    /// It goes on with a warning; never where something is not known. Who stays in the way is not waited for, unless
    /// '--timeout' says how long
    Warn,
}

/// Waits and reports; with a command, becomes it.
pub(super) fn run(
    target: Target,
    wish: &Wish,
    output: &Output,
    verbosity: Verbosity,
    file: Option<&Destination>,
) -> Result<u8, Failure> {
    // A reap raises it for its pidfds; the command is to have what it would have had without us.
    let limit = getrlimit(Resource::Nofile);
    let mut scope = target.scope();
    let host = Host::live();
    let (settings, receipts) = target.file.guarded(&host)?;
    scope.receipts = receipts;
    if let Some(unread) = settings.unread_models.clone().filter(|_| scope.is_everything()) {
        return Err(Failure::UnreadModels(unread));
    }
    let on_blocked = match wish.on_blocked {
        Blocked::Fail => gate::OnBlocked::Fail,
        Blocked::Warn => gate::OnBlocked::Warn,
    };
    let wishes = Wishes {
        timeout: wish.timeout.unwrap_or(settings.gate.timeout),
        settle: settings.gate.settle,
        lets_pass: wish.on_blocked == Blocked::Warn && wish.timeout.is_none(),
        reaps: wish.reap,
        accepts: if wish.allow_ours { Accepts::Ours } else { Accepts::Nobody },
    };
    let mut interrupt = Interrupt::install().map_err(Failure::Interrupt)?;
    let mut record = Record::new(verbosity.is_verbose);
    if let Some(unread) = &settings.unread_models {
        record.tell(Event::Warning(&guarded::in_words(unread)));
    }
    let mut gate = Gate::new(&host, &settings, &scope, wishes, &mut |e| record.tell(e))?;
    let mut keep = |gate: &mut Gate<'_>, record: &mut Record| {
        let mut tell = |event: Event<'_>| record.tell(event);
        let gated = gate.keep(&mut interrupt, &mut tell)?;
        Ok::<_, Failure>((gate::exit_code(&gated, on_blocked), gated, interrupt.count() > 0))
    };
    let report = |code: u8, gated: &Gated, record: &mut Record| {
        record.gated(gated, on_blocked);
        // Where the table is not to be seen, what is let pass is still told.
        if code == exit::CLEAR && (output.quiet || file.is_some()) {
            for text in let_pass(gated) {
                record.tell(Event::Warning(&text));
            }
        }
        let text = rendered(gated, on_blocked, output, verbosity, !wish.command.is_empty())?;
        let document = output.put_document(|out| gate::render_json(gated, on_blocked, out));
        if wish.command.is_empty() || file.is_some() {
            put(&text, code, output, file)?;
        // Standard output is the command's.
        } else if code != exit::CLEAR || !(output.quiet || is_plain(gated)) {
            anstream::stderr().write_all(&text)?;
        }
        document
    };
    let (code, gated, _) = keep(&mut gate, &mut record)?;
    if code == exit::CLEAR && wish.command.is_empty() {
        put_on_record(&gate, &gated, wish, &mut record);
    }
    gate.give_way();
    report(code, &gated, &mut record)?;
    let Some((program, arguments)) = wish.command.split_first() else { return Ok(code) };
    if code != exit::CLEAR {
        return Ok(before_command(code));
    }
    // The report has taken its time.
    let (code, gated, is_interrupted) = keep(&mut gate, &mut record)?;
    if code != exit::CLEAR || is_interrupted {
        gate.give_way();
        report(code, &gated, &mut record)?;
        return Ok(if is_interrupted { NOT_KNOWN } else { before_command(code) });
    }
    put_on_record(&gate, &gated, wish, &mut record);
    drop(record);
    gate.make_way();
    let Rlimit { current, maximum } = limit;
    let _ = setrlimit(Resource::Nofile, Rlimit { current, maximum });
    // Whoever told us to stop meanwhile did not mean the command to start.
    if interrupt.give_up().map_err(Failure::Interrupt)? > 0 {
        return Ok(NOT_KNOWN);
    }
    // What is ours is closed by it, the lock last.
    let mut command = Command::new(program);
    sys::keep_sigpipe(&mut command);
    let error = command.args(arguments).exec();
    Err(Failure::Usage(format!("'{}' cannot be run: {error}", program.to_string_lossy())))
}

/// No reason not to start.
fn put_on_record(gate: &Gate<'_>, gated: &Gated, wish: &Wish, record: &mut Record) {
    if let Err(why) = gate.record(gated, !wish.command.is_empty()) {
        record.tell(Event::Warning(&why));
    }
}

fn before_command(code: u8) -> u8 {
    if code == exit::NOT_CLEAR { BLOCKED } else { NOT_KNOWN }
}

/// What blocks, of a start that goes on.
fn let_pass(gated: &Gated) -> impl Iterator<Item = String> {
    gate::places(gated).filter_map(|place| match place.answer {
        Answer::Blocked(block) => {
            let (title, why) = (place.title, &block.why.sentence);
            Some(format!("{title} is blocked, and the start goes on: {why}"))
        }
        Answer::Open(_) | Answer::Unknown(_) => None,
    })
}

/// Nothing but what is open and of which nothing need be said.
fn is_plain(gated: &Gated) -> bool {
    gated.unseen.is_none()
        && gated.reaped.iter().all(|reaped| reaped.deeds.is_empty())
        && gated.answers().all(|answer| *answer == Answer::Open(Vec::new()))
}

fn rendered(
    gated: &Gated,
    on_blocked: gate::OnBlocked,
    output: &Output,
    verbosity: Verbosity,
    has_command: bool,
) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    match output.format {
        Format::Table => {
            let mut style = output.style(verbosity.is_verbose);
            if has_command && output.file.is_none() {
                style = Style { shows_evidence: verbosity.is_verbose, ..Style::of_stderr() };
            }
            gate::render(gated, on_blocked, style, &mut text)?;
        }
        Format::Json => gate::render_json(gated, on_blocked, &mut text)?,
        Format::Github => {
            github::render_gated(gated, on_blocked, &mut text)?;
            append_summary(|room| github::summary_of_gated(gated, on_blocked, room));
            append_outputs(&github::outputs_of_gated(gated, on_blocked));
        }
        Format::Line => line::render_gated(gated, on_blocked, &mut text)?,
        Format::Prometheus => prometheus::render_gated(gated, on_blocked, &mut text)?,
    }
    Ok(text)
}
