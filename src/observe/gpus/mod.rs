//! GPUs and who holds them.

use std::{
    io::{self, BufRead, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{host::Host, snapshot::Gpus};

/// Whether and where a source is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// Where it is found, if there is an NVIDIA GPU on the host at all.
    Auto,
    /// Never.
    Off,
    /// At this library or program.
    At(PathBuf),
}

/// Who may be asked about GPUs, beside the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// NVIDIA's management library.
    pub nvml: Way,
    /// `nvidia-smi`, where the library gives no answer.
    pub nvidia_smi: Way,
    /// How long either may take for one answer.
    pub timeout: Duration,
}

/// Looks at GPUs, again and again.
#[derive(Debug)]
pub struct Reader {
    #[expect(dead_code, reason = "until it looks")]
    sources: Sources,
}

impl Reader {
    /// Starts nothing yet.
    pub fn new(sources: Sources) -> Self {
        Self { sources }
    }

    /// The GPUs as they are now, within twice the timeout and what the walk over all processes takes.
    pub fn look(&mut self, _: &Host) -> Gpus {
        Gpus { may_miss: Some("GPUs are not looked at yet".to_owned()), ..Gpus::default() }
    }
}

/// The body of the process that asks NVML: answers each line `look` with one line.
pub fn serve(_: Option<&Path>, _: &mut dyn BufRead, _: &mut dyn Write) -> io::Result<()> {
    Ok(())
}
