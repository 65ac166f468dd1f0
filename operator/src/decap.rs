//! `tapfleet decap`: the daemon's own judge and encoder on a file.
//! In: a capture file. Out: its mirrored frames in the order of the file, and what was counted.
//! Never: windows, merging, another rule than the daemon's.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tapfleet::capture::file::FileEngine;
use tapfleet::capture::worker::Judge;
use tapfleet::capture::{self, Bytes, Engine, EngineKind, Fanout, Item, Taken, What, filter};
use tapfleet::record::facts::{Kind, WindowFacts};
use tapfleet::record::segment::{Entry, Segment};
use tapfleet::record::{Buffer, Chunk, Facts, Precision, Room, SegmentNumber, Spool, Stamp, WRITE_BYTES};
use tapfleet::wire::{Origin, Rules};

use crate::cli::Decap;

/// What can go wrong.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// The input, or the filter.
    #[error(transparent)]
    Capture(#[from] capture::Error),
    /// The output.
    #[error("cannot write '{path}': {cause}")]
    Output {
        /// Which file.
        path: String,
        /// Why not.
        cause: io::Error,
    },
}

/// What was counted; printed as it is with `--json`.
#[derive(Default, Serialize, Debug)]
struct Counted {
    frames: u64,
    written: u64,
    bytes: u64,
    cut: u64,
    drops: BTreeMap<&'static str, u64>,
    ignored: BTreeMap<&'static str, u64>,
    origins: BTreeMap<String, u64>,
}

/// Strips the tunnels from a file.
pub fn run(arguments: &Decap) -> Result<(), Error> {
    let settings = settings(arguments);
    let filter = settings.filter.as_deref().map(filter::compile).transpose()?;
    let mut judge = Judge::new(&settings, filter);
    let mut engine = FileEngine::open(settings.files.clone())?;
    let mut output = Output::create(&arguments.output)?;
    let mut facts = Facts::begin(Kind::Capture, String::new(), String::new(), String::new(), WindowFacts { start: Stamp(0), seconds: 0 });
    facts.format = arguments.format();
    facts.precision = Precision::Nano;
    facts.filter = settings.filter.clone();
    let comment = format!("decapsulated from {}", arguments.input.display());
    let segment = Segment::begin(SegmentNumber(0), &facts, settings.snaplen, &comment, &mut output, 0);
    let (origins, places, numbers) = (Vec::new(), HashMap::new(), Vec::new());
    let mut decap = Decapsulation { segment, output, origins, places, numbers, counted: Counted::default() };

    let progress = progress();
    let (mut bytes, mut new_origins) = (Bytes::default(), Vec::new());
    let ended = loop {
        match engine.take(&mut bytes, Duration::MAX) {
            Ok(Taken::Frames) => {}
            Ok(Taken::Quiet { .. }) => continue,
            Ok(Taken::End) => break Ok(()),
            Err(error) => break Err(error),
        }
        let before = decap.counted.frames;
        judge.judge_each(&bytes, &mut new_origins, |item, new_origins| {
            new_origins.drain(..).for_each(|(number, origin)| decap.learn(number, origin));
            decap.take(&item, bytes.as_slice());
        });
        progress.inc(decap.counted.frames - before);
        if decap.output.failed.is_some() {
            break Ok(());
        }
    };
    progress.finish_and_clear();
    let counted = decap.finish(&arguments.output)?;
    // What came before a damaged place is written and counted all the same.
    print(&counted, arguments)?;
    Ok(ended?)
}

fn settings(arguments: &Decap) -> capture::Settings {
    capture::Settings {
        engine: EngineKind::File,
        interface: String::new(),
        files: vec![arguments.input.clone()],
        rules: Rules { geneve_port: arguments.geneve_port, vxlan_port: arguments.vxlan_port, inline: arguments.inline() },
        filter: arguments.filter.clone(),
        snaplen: arguments.snaplen,
        threads: 1,
        fanout: Fanout::Hash,
        ring_bytes: 0,
        outer_sources: Vec::new(),
        mirror_sources: Vec::new(),
    }
}

/// The frames on their way from file to file.
struct Decapsulation {
    segment: Segment,
    output: Output,
    /// Interface number in the file and frames of each origin.
    origins: Vec<(u32, u64)>,
    /// Where an origin stands among them.
    places: HashMap<Origin, usize>,
    /// The same by the judge's number of it.
    numbers: Vec<usize>,
    counted: Counted,
}

impl Decapsulation {
    /// From now on the judge means this origin by that number; it may have had another number before.
    fn learn(&mut self, number: u32, origin: Origin) {
        let place = *self.places.entry(origin).or_insert(self.origins.len());
        if place == self.origins.len() {
            self.origins.push((self.segment.origin(&origin, &mut self.output), 0));
        }
        let number = number as usize;
        if self.numbers.len() <= number {
            self.numbers.resize(number + 1, place);
        }
        if let Some(known) = self.numbers.get_mut(number) {
            *known = place;
        }
    }

    #[inline]
    fn take(&mut self, item: &Item, bytes: &[u8]) {
        self.counted.frames += 1;
        match item.what {
            What::Dropped(reason) => *self.counted.drops.entry(reason.name()).or_default() += 1,
            What::Ignored(reason) => *self.counted.ignored.entry(reason.name()).or_default() += 1,
            What::Inner { link, notes, direction, origin } => {
                let at = item.at as usize;
                let bytes = bytes.get(at..at + item.len as usize).unwrap_or_default();
                let place = self.numbers.get(origin as usize);
                let Some((interface, frames)) = place.and_then(|&place| self.origins.get_mut(place)) else { return };
                *frames += 1;
                let interface = *interface;
                let entry =
                    Entry { time_ns: item.time_ns, bytes, orig_len: item.orig_len, link, direction, interface, lost: 0, comment: "" };
                self.segment.write(&entry, &mut self.output, 0);
                self.counted.written += 1;
                self.counted.bytes += bytes.len() as u64;
                self.counted.cut += u64::from(notes.cut);
            }
        }
    }

    fn finish(mut self, path: &Path) -> Result<Counted, Error> {
        self.segment.flush(0, 0, &mut self.output);
        self.output.finish(path)?;
        for (origin, place) in self.places {
            let frames = self.origins.get(place).map_or(0, |&(_, frames)| frames);
            *self.counted.origins.entry(origin.to_string()).or_default() += frames;
        }
        Ok(self.counted)
    }
}

/// The file to write, as the encoder's spool.
struct Output {
    file: File,
    buffers: Vec<Buffer>,
    failed: Option<io::Error>,
}

impl Output {
    fn create(path: &Path) -> Result<Self, Error> {
        // Not through `Stdout`, which looks for the ends of lines.
        let file = if path == Path::new("-") { io::stdout().as_fd().try_clone_to_owned().map(File::from) } else { File::create(path) };
        Ok(Self { file: file.map_err(|cause| output_error(path, cause))?, buffers: Vec::new(), failed: None })
    }

    fn finish(self, path: &Path) -> Result<(), Error> {
        self.failed.map_or(Ok(()), |cause| Err(output_error(path, cause)))
    }
}

fn output_error(path: &Path, cause: io::Error) -> Error {
    Error::Output { path: path.display().to_string(), cause }
}

impl Spool for Output {
    const CHUNK_BYTES: usize = WRITE_BYTES;

    fn buffer(&mut self) -> Buffer {
        self.buffers.pop().unwrap_or_else(|| Buffer::with_capacity(Self::CHUNK_BYTES))
    }

    fn append(&mut self, _: SegmentNumber, chunk: Chunk) {
        let Chunk { mut bytes, .. } = chunk;
        if self.failed.is_none() {
            self.failed = self.file.write_all(&bytes).err();
        }
        bytes.clear();
        self.buffers.push(bytes);
    }

    fn room(&mut self, _bytes: u64) -> Room {
        Room::Yes
    }

    fn spare(&self) -> u64 {
        u64::MAX
    }

    // One file, no manifest: there is nothing to open, draft or close.
    fn open(&mut self, _: SegmentNumber, _: Facts) {}
    fn draft(&mut self, _: SegmentNumber, _: Facts) {}
    fn close(&mut self, _: SegmentNumber, _: Facts) {}
    fn idle(&mut self, _: Facts) {}
}

fn progress() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {human_pos} frames, {per_sec}, {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner());
    ProgressBar::no_length().with_style(style)
}

fn print(counted: &Counted, arguments: &Decap) -> Result<(), Error> {
    let text = if arguments.json {
        serde_json::to_string(counted).map_err(|cause| output_error(Path::new("the counters"), cause.into()))?
    } else {
        table(counted)
    };
    let to_stderr = arguments.output == Path::new("-");
    let result = if to_stderr { writeln!(io::stderr(), "{text}") } else { writeln!(io::stdout(), "{text}") };
    result.map_err(|cause| output_error(Path::new("the counters"), cause))
}

fn table(counted: &Counted) -> String {
    let mut rows = vec![
        ("frames read".to_owned(), counted.frames),
        ("frames written".to_owned(), counted.written),
        ("bytes written".to_owned(), counted.bytes),
    ];
    if counted.cut > 0 {
        rows.push(("of them cut by the mirror".to_owned(), counted.cut));
    }
    rows.extend(counted.drops.iter().map(|(reason, &n)| (format!("dropped: {reason}"), n)));
    rows.extend(counted.ignored.iter().map(|(reason, &n)| (format!("ignored: {reason}"), n)));
    rows.extend(counted.origins.iter().map(|(name, &n)| (format!("origin {name}"), n)));
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let lines: Vec<String> = rows.iter().map(|(name, n)| format!("{name:<width$}  {n:>12}")).collect();
    lines.join("\n")
}
