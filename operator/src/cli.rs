//! The arguments of `tapfleet`. Help texts are the reference.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tapfleet::record::Format;
use tapfleet::wire::Inline;

/// Reads what tapfleet captured.
#[derive(Parser, Debug)]
#[command(name = "tapfleet", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `tapfleet` can do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Strip GENEVE and VXLAN from a capture file.
    ///
    /// Reads pcap or pcapng, also compressed by gzip or zstd; writes the mirrored frames byte for byte.
    Decap(Decap),
}

/// Arguments of `tapfleet decap`.
#[derive(Args, Debug)]
pub struct Decap {
    /// Capture file to read; '-' for standard input.
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// Capture file to write; '-' for standard output.
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// Form of OUT; by default pcapng if OUT ends in .pcapng, else pcap.
    #[arg(long, value_enum)]
    pub format: Option<FormatArgument>,
    /// Print the counters as one JSON object (on standard error when OUT is '-').
    #[arg(long)]
    pub json: bool,
    /// UDP port of GENEVE.
    #[arg(long, default_value_t = 6081, value_name = "PORT")]
    pub geneve_port: u16,
    /// UDP port of VXLAN.
    #[arg(long, default_value_t = 4789, value_name = "PORT")]
    pub vxlan_port: u16,
    /// Store packets that a load balancer carries inline, behind a made-up Ethernet header.
    #[arg(long)]
    pub store_inline: bool,
    /// Keep only frames that match this filter, on the mirrored frame (pcap-filter(7)).
    #[arg(long, value_name = "BPF")]
    pub filter: Option<String>,
    /// Keep at most this many bytes of each frame.
    #[arg(long, default_value_t = 262_144, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=262_144))]
    pub snaplen: u32,
}

impl Decap {
    /// The form to write.
    pub fn format(&self) -> Format {
        match self.format {
            Some(FormatArgument::Pcap) => Format::Pcap,
            Some(FormatArgument::Pcapng) => Format::Pcapng,
            None if self.output.extension().is_some_and(|extension| extension == "pcapng") => Format::Pcapng,
            None => Format::Pcap,
        }
    }

    /// What to do with inline packets.
    pub fn inline(&self) -> Inline {
        if self.store_inline { Inline::Store } else { Inline::Ignore }
    }
}

/// Form of a capture file.
#[derive(Clone, Copy, ValueEnum, Debug)]
pub enum FormatArgument {
    /// Classic pcap with nanoseconds.
    Pcap,
    /// pcapng: one interface per origin, direction.
    Pcapng,
}
