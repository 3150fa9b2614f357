//! `farhold lab link`: a bad link between two ends, until it is interrupted.

use super::SiteArgs;
use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use qemu_tests::link::ends::End;
use qemu_tests::link::pipe::Counts;
use qemu_tests::link::run::{Both, Link, Running};
use qemu_tests::link::shape::{Outage, Shape};
use qemu_tests::link::uplink::Uplink;
use qemu_tests::link::words;
use std::collections::BTreeMap;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Makes the network between the lab's nodes and this machine slow, late and lossy, until it is interrupted; or joins two other ends by such a link.
#[derive(Args)]
pub struct LinkCmd {
    #[command(flatten)]
    site: SiteArgs,
    /// Only this node's network [default: that of every node that runs, each with a link of its own].
    #[arg(long, conflicts_with = "Ends")]
    node: Option<String>,
    #[command(flatten)]
    ends: Ends,
    #[command(flatten)]
    shape: ShapeArgs,
    /// Time of the link runs so many times as fast as the clock's.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// End after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Print what became of the packets as JSON at the end.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[group(multiple = false)]
struct Ends {
    /// Two TAP devices, made here if they are not there: needs root, or a namespace of one's own.
    #[arg(long, num_args = 2, value_names = ["TAP", "TAP"])]
    tap: Option<Vec<String>>,
    /// Datagrams that come to one address go to another, answers back to whoever sent first.
    #[arg(long, num_args = 2, value_names = ["LISTEN", "TO"])]
    udp: Option<Vec<SocketAddr>>,
    /// Connections to one address go on to another; all share the line.
    #[arg(long, num_args = 2, value_names = ["LISTEN", "TO"])]
    tcp: Option<Vec<SocketAddr>>,
    /// Two pseudo-terminals, as the ends of a serial line of ten bits a byte.
    #[arg(long)]
    pty: bool,
}

#[derive(Args)]
struct ShapeArgs {
    /// Bits per second in each direction, as 2400bit or 64kbit.
    #[arg(long, value_parser = words::rate)]
    rate: Option<u64>,
    /// Time from one end to the other, as 600ms.
    #[arg(long, value_parser = words::micros, default_value = "0ms")]
    delay: u64,
    /// Up to so much more delay by chance.
    #[arg(long, value_parser = words::micros, default_value = "0ms")]
    jitter: u64,
    /// Share of packets that are lost, as 5%.
    #[arg(long, value_parser = words::share, default_value = "0%")]
    loss: u32,
    /// Share of packets that arrive twice.
    #[arg(long, value_parser = words::share, default_value = "0%")]
    duplicate: u32,
    /// Share of packets that are overtaken by others.
    #[arg(long, value_parser = words::share, default_value = "0%")]
    reorder: u32,
    /// Share of packets in which a byte is changed.
    #[arg(long, value_parser = words::share, default_value = "0%")]
    garble: u32,
    /// When the link is up, as 60s/10min: for 60 s in every 10 minutes.
    #[arg(long, value_parser = words::outage)]
    up: Option<Outage>,
    /// KiB that wait for the line at most.
    #[arg(long, default_value_t = 64)]
    queue_kib: u32,
    /// What chance begins from: the same seed and packets meet the same fate.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Ends {
    /// Whether there are other ends than the lab's.
    fn any(&self) -> bool {
        self.pty || self.tap.is_some() || self.udp.is_some() || self.tcp.is_some()
    }
}

impl ShapeArgs {
    fn shape(&self) -> Shape {
        Shape {
            bits_per_s: self.rate,
            bits_per_byte: 8,
            delay_us: self.delay,
            jitter_us: self.jitter,
            loss_ppm: self.loss,
            duplicate_ppm: self.duplicate,
            reorder_ppm: self.reorder,
            garble_ppm: self.garble,
            queue_bytes: u64::from(self.queue_kib) << 10,
            outage: self.up,
            holds: false,
            seed: self.seed,
        }
    }
}

impl LinkCmd {
    /// Runs the command.
    ///
    /// # Errors
    /// If an end cannot be had, or fails.
    pub fn run(&self) -> Result<ExitCode> {
        if !(0.01..=10_000.0).contains(&self.scale) {
            bail!("--scale is {}, but must be 0.01 to 10000", self.scale);
        }
        let links = self.links()?;
        let bar = ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {msg}")?);
        let show = || {
            bar.set_message(links.iter().map(Joined::words).collect::<Vec<_>>().join(" | "));
            bar.tick();
        };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a loop")?;
        runtime.block_on(async {
            let mut ended = signal(SignalKind::terminate()).context("hear signals")?;
            let mut left = self.seconds.map(|seconds| seconds.saturating_mul(2));
            while left != Some(0) && !links.iter().all(|link| link.running.ended()) {
                tokio::select! {
                    interrupted = tokio::signal::ctrl_c() => return interrupted.context("wait for an interrupt"),
                    _ = ended.recv() => return Ok(()),
                    () = tokio::time::sleep(Duration::from_millis(500)) => {}
                }
                show();
                left = left.map(|left| left - 1);
            }
            Ok(())
        })?;
        bar.finish_and_clear();
        let text = if self.json {
            let counted = |link: &Joined| {
                let [there, back] = link.running.counts();
                (link.node.clone(), serde_json::json!({ "there": there, "back": back }))
            };
            match self.ends.any() {
                true => links.first().map(|link| counted(link).1.to_string()).unwrap_or_default(),
                false => serde_json::json!(links.iter().map(counted).collect::<BTreeMap<_, _>>()).to_string(),
            }
        } else {
            links.iter().map(Joined::words).collect::<Vec<_>>().join("\n")
        };
        writeln!(std::io::stdout(), "{text}").context("write to standard output")?;
        Ok(ExitCode::SUCCESS)
    }

    /// Begins to carry.
    fn links(&self) -> Result<Vec<Joined>> {
        if self.ends.any() {
            let (link, said) = self.link()?;
            eprintln!("{said} (Ctrl-C ends it)");
            return Ok(vec![Joined { node: String::new(), running: link.spawn(), _uplink: None }]);
        }
        let site =
            self.site.open().context("without --tap, --udp, --tcp or --pty it is the lab's network")?;
        let mut links = Vec::new();
        for (name, number) in site.nodes().iter().zip(0..) {
            let vm = site.vm(Some(name))?;
            let asked = self.node.as_ref().map_or(vm.process()?.is_some(), |node| node == name);
            if !asked {
                continue;
            }
            let (uplink, machine, host) = Uplink::take(&vm)?;
            // Every node has its own luck.
            let shape = Shape { seed: self.shape.seed.wrapping_add(number), ..self.shape.shape() };
            let mut link = Link::new(shape, shape.back(), self.scale);
            link.join(host, machine);
            links.push(Joined { node: name.clone(), running: link.spawn(), _uplink: Some(uplink) });
        }
        if links.is_empty() {
            site.vm(self.node.as_deref())?;
            bail!("every node of {} is off; `farhold lab start` powers them on", site.folder().display());
        }
        let names: Vec<&str> = links.iter().map(|link| link.node.as_str()).collect();
        eprintln!("{} behind the link until this ends (Ctrl-C); `there` is to the node", names.join(", "));
        Ok(links)
    }

    fn link(&self) -> Result<(Link, String)> {
        let mut shape = self.shape.shape();
        let Ends { tap, udp, tcp, pty } = &self.ends;
        shape.holds = tcp.is_some();
        shape.bits_per_byte = if *pty { 10 } else { 8 };
        let by_chance = shape.loss_ppm | shape.duplicate_ppm | shape.reorder_ppm | shape.garble_ppm;
        if shape.holds && by_chance != 0 {
            bail!(
                "a TCP stream loses, repeats and changes nothing: use --tap for what chance does to packets"
            );
        }
        let mut link = Link::new(shape, shape.back(), self.scale);
        let said = if let Some([a, b]) = tap.as_deref() {
            link.join(End::tap(a)?, End::tap(b)?);
            format!("{a} and {b} are joined")
        } else if let Some([listen, to]) = udp.as_deref() {
            let any = SocketAddr::new(listen.ip(), 0);
            link.join(End::udp(*listen, None)?, End::udp(any, Some(*to))?);
            format!("datagrams to {listen} go to {to}")
        } else if let Some([listen, to]) = tcp.as_deref() {
            let listener = TcpListener::bind(listen).with_context(|| format!("listen on {listen}"))?;
            let at = listener.local_addr().context("ask for the address")?;
            link.relay(listener, *to)?;
            format!("connections to {at} go to {to}")
        } else {
            let ((a, a_path), (b, b_path)) = (End::terminal()?, End::terminal()?);
            link.join(a, b);
            format!("{} and {} are joined", a_path.display(), b_path.display())
        };
        Ok((link, said))
    }
}

/// A link that carries; what it was put into is as before when this ends.
struct Joined {
    /// Node of the lab; empty for other ends.
    node: String,
    running: Running,
    _uplink: Option<Uplink>,
}

impl Joined {
    fn words(&self) -> String {
        let counts = describe(&self.running.counts());
        let gone = if self.running.ended() { ", ended" } else { "" };
        if self.node.is_empty() { counts } else { format!("{}: {counts}{gone}", self.node) }
    }
}

fn describe(counts: &Both) -> String {
    let one = |arrow: &str, counts: &Counts| {
        let Counts { packets, delivered, delivered_bytes, lost, down, overflow, .. } = counts;
        let gone = lost + down + overflow;
        format!("{arrow} {delivered} of {packets} packets, {} KiB, {gone} lost", delivered_bytes >> 10)
    };
    format!("{}; {}", one("there", &counts[0]), one("back", &counts[1]))
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command, FromArgMatches};

    #[test]
    fn a_link_that_cannot_be_is_refused_with_words() {
        let parse = |words: &[&str]| {
            let command = super::LinkCmd::augment_args(Command::new("link"));
            let matches =
                command.try_get_matches_from([&["link"], words].concat()).map_err(|e| e.to_string())?;
            let link = super::LinkCmd::from_arg_matches(&matches).map_err(|error| error.to_string())?;
            link.link().map(|(_, said)| said).map_err(|error| error.to_string())
        };
        assert!(parse(&["--pty", "--rate", "fast"]).unwrap_err().contains("write it like"));
        let tcp = ["--tcp", "127.0.0.1:0", "127.0.0.1:9"];
        assert!(parse(&[&tcp[..], &["--loss", "5%"]].concat()).unwrap_err().contains("a TCP stream loses"));
        assert!(parse(&[&tcp[..], &["--up", "60s/10min"]].concat()).unwrap().contains("go to 127.0.0.1:9"));
        assert!(parse(&["--pty", "--rate", "2400bit", "--loss", "5%"]).unwrap().contains("/dev/pts/"));
    }
}
