//! Looks at sources: is there a release, is it for this device, is it newer, is there room. Verified before parsed.

use super::{Effect, Fault, Intent, Offered, Outcome, State};
use crate::update::links::Choice;
use crate::update::plan::{self, Plan};
use crate::update::policy;
use crate::update::state::{Attempt, Checking, Floor, Phase};
use formats::catalogue::Catalogue;
use formats::frame::{Frame, Verified};
use formats::hex::Digest;
use formats::manifest::Manifest;
use formats::roles::{Chain, Root, RootError};
use formats::trust::{self, ChainFetches, Device, Rank, Refusal, TimeWatermark, Verdict};
use std::error::Error;

/// An error with its causes, as one sentence.
pub fn words(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(&format!(": {next}"));
        cause = next.source();
    }
    text
}

/// The chain that is remembered. A memory that was tampered with can only be of no use: every link is signed.
fn stored(chain: &str) -> Option<Chain> {
    let bytes: Option<Vec<u8>> = (0..chain.len() / 2)
        .map(|n| chain.get(2 * n..2 * n + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()))
        .collect();
    bytes.and_then(|bytes| Chain::parse(&bytes).ok())
}

/// The newest root document that image and memory lead to.
pub(super) fn trusted(anchor: &Root, chain: &str) -> Root {
    stored(chain).and_then(|chain| chain.follow(anchor).ok()).unwrap_or_else(|| anchor.clone())
}

impl State {
    pub(super) fn check(&mut self, source: Option<String>, intent: Intent, now_ms: u64, out: &mut Outcome) {
        let Some(facts) = &self.facts else { return out.refuse("the agent is starting") };
        let chosen = match source {
            Some(source) => Some(source),
            None => match self.table(now_ms).choose(None) {
                Choice::Free => facts.source.clone(),
                Choice::Use(source, _) => Some(source),
                Choice::Wait(seconds, why) => {
                    let then = policy::reopened_ms(now_ms, seconds, self.seed());
                    self.live.next_check_ms = self.live.next_check_ms.map(|next| next.min(then));
                    self.live.said = Some(why.clone());
                    return out.refuse(why);
                }
            },
        };
        let Some(source) = chosen else {
            return out.refuse(
                "no source is configured: name one with `--source`, or set `settings.update.source` in the profile",
            );
        };
        if let Err(why) = &facts.anchor {
            return out.refuse(format!("this image cannot be updated: {why}"));
        }
        if facts.running.is_none() {
            return out.refuse("the root is not a Farhold slot: boot an image that `farhold build` made");
        }
        if let (Err(why), Intent::Now | Intent::Poll) = (&facts.durable, intent) {
            return out
                .refuse(format!("nothing that is decided now would be kept, so nothing is begun: {why}"));
        }
        if let Some(checking) = &self.live.checking {
            return out.refuse(format!("{} is being looked at already", checking.source));
        }
        let free = match &self.memory.phase {
            Phase::Idle | Phase::Fetching(_) => true,
            Phase::Installing(_)
            | Phase::Trial { .. }
            | Phase::Committing { .. }
            | Phase::Leaving { .. }
            | Phase::Returning { .. } => intent == Intent::Plan,
        };
        if !free {
            return out.refuse("another release is being installed or tried; see `farhold-agent status`");
        }
        out.effects.push(Effect::ReadAnnouncements(source.clone()));
        self.live.checking = Some(Checking { source, intent, verified: None });
    }

    pub(super) fn unread(&mut self, why: String, fault: Fault, now_ms: u64, out: &mut Outcome) {
        if let Some(checking) = self.live.checking.take() {
            let asked = if let Fault::Unreachable(asked) = fault { Some(asked) } else { None };
            if let Some(asked) = asked
                && self.avoid(&checking.source, asked, now_ms)
                && matches!(self.table(now_ms).choose(None), Choice::Use(..))
            {
                // Another carrier may answer.
                self.live.next_check_ms = Some(now_ms + policy::backoff_ms(1, None, self.seed()));
            } else if let (Fault::Unreachable(Some(seconds)), Some(next)) = (fault, self.live.next_check_ms) {
                let asked = now_ms + policy::backoff_ms(1, Some(seconds), self.seed());
                self.live.next_check_ms = Some(next.max(asked));
            }
            self.live.said = Some(why.clone());
            out.refuse(why);
        }
    }

    fn refused(&mut self, why: String, out: &mut Outcome) {
        let source = self.live.checking.take().map_or_else(String::new, |checking| checking.source);
        let text = format!("what {source} offers is refused: {why}");
        // A source that offers the same again and again is one event, not thousands.
        if self.live.said.as_deref() != Some(text.as_str()) {
            out.note("update-refused", text.clone());
        }
        self.live.said = Some(text.clone());
        out.refuse(text);
    }

    /// A source that announces by itself is looked at soon, not by all devices at once.
    pub(super) fn heard(&mut self, source: &str, now_ms: u64) {
        let configured = self.facts.as_ref().is_some_and(|facts| facts.source.as_deref() == Some(source))
            || self.table(now_ms).of(source).is_some();
        if configured {
            let soon = policy::heard_ms(now_ms, self.seed());
            self.live.next_check_ms = Some(self.live.next_check_ms.map_or(soon, |next| next.min(soon)));
        }
    }

    /// Announcements for everybody, for the site, for the device: the newest that is good for this device counts.
    pub(super) fn announcements(&mut self, frames: Vec<Vec<u8>>, now_ms: u64, out: &mut Outcome) {
        let Some(root) = &self.root else { return };
        let unknown = |frame: &Vec<u8>| match trust::authenticate(frame, root) {
            Err(refusal @ Refusal::RootUnknown { .. }) => Some(words(&refusal)),
            Ok(_) | Err(_) => None,
        };
        let Some(unknown) = frames.iter().find_map(unknown) else { return self.choose(&frames, None, out) };
        let mut budget = self.chain_fetches.unwrap_or(ChainFetches::stored(self.memory.chain_fetches));
        let granted = budget.take(now_ms / 1000);
        self.chain_fetches = Some(budget);
        self.memory.chain_fetches = budget.used();
        match &self.live.checking {
            Some(checking) if granted => {
                out.effects.push(Effect::ReadRoots(checking.source.clone(), frames));
            }
            Some(_) | None => {
                let why = format!("{unknown}, for which this day's budget is spent");
                self.choose(&frames, Some(&why), out);
            }
        }
    }

    pub(super) fn roots(&mut self, bytes: &[u8], frames: &[Vec<u8>], out: &mut Outcome) {
        let Some(root) = self.root.clone().filter(|_| self.live.checking.is_some()) else { return };
        match self.follow(bytes, &root) {
            Ok((newest, chain)) if newest.version > root.version => {
                out.note("root-rotated", format!("root version {} follows {}", newest.version, root.version));
                self.memory.chain = formats::hex::encode(&chain.encode());
                // Rotation puts a wrong watermark right, downwards too.
                self.memory.watermark_s = newest.signed_s;
                self.root = Some(newest);
                self.choose(frames, None, out);
            }
            Ok(_) => self.choose(frames, None, out),
            Err(error) => self.choose(frames, Some(&words(&error)), out),
        }
    }

    /// Takes up the best of these announcements, or refuses them; `unknown` says why one of them cannot be judged.
    fn choose(&mut self, frames: &[Vec<u8>], unknown: Option<&str>, out: &mut Outcome) {
        let (Some(root), true) = (&self.root, self.live.checking.is_some()) else { return };
        let judged = frames.iter().map(|frame| {
            let rank = Frame::parse(frame).ok().map(|frame| Rank::of(frame.unverified()));
            let verdict = trust::authenticate(frame, root)
                .and_then(|verified| Ok((self.verdict(&verified, root)?, verified)));
            (rank, verdict)
        });
        let mut judged: Vec<_> = judged.collect();
        judged.sort_by_key(|(rank, _)| std::cmp::Reverse(*rank));
        let wanted = |verdict: &Verdict| match verdict {
            Verdict::Newer => 0,
            Verdict::Known => 1,
            Verdict::PossiblyFrozen { .. } => 2,
        };
        let best = judged.iter().filter_map(|(_, verdict)| verdict.as_ref().ok());
        let best = best.min_by_key(|(verdict, _)| wanted(verdict)).cloned();
        match (best, judged.first(), unknown) {
            (Some((verdict, verified)), ..) => self.take_up(verdict, verified, out),
            (None, _, Some(why)) => self.refused(why.to_owned(), out),
            (None, Some((_, Err(refusal))), None) => {
                let why = words(refusal);
                self.refused(why, out);
            }
            (None, ..) => self.refused("it announces nothing".to_owned(), out),
        }
    }

    /// Follows a source's chain from the trusted document. What is remembered is joined on, since it must lead there from
    /// the image's own document again after a restart, and a source need not carry what is long replaced.
    fn follow(&self, bytes: &[u8], trusted: &Root) -> Result<(Root, Chain), RootError> {
        let offered = Chain::parse(bytes)?;
        let newest = offered.follow(trusted)?;
        let stored = stored(&self.memory.chain);
        let known = stored.iter().flat_map(Chain::documents);
        let known = known.filter(|document| document.root.version <= trusted.version);
        let added = offered.documents().iter();
        let first = known.clone().next_back().map(|document| document.root.version);
        let added = added.filter(|document| first.is_none_or(|first| document.root.version > first));
        Ok((newest, Chain::new(known.chain(added).cloned().collect())?))
    }

    fn watermark(&self, root: &Root) -> TimeWatermark {
        TimeWatermark::restore(self.memory.watermark_s, root)
    }

    fn verdict(&self, verified: &Verified, root: &Root) -> Result<Verdict, Refusal> {
        let Some(facts) = &self.facts else { return Ok(Verdict::Known) };
        let device = Device {
            product: &facts.product,
            board: &facts.board,
            arch: facts.arch,
            channel: facts.channel,
            site: facts.site.as_deref(),
            id: &facts.id,
        };
        let accepted = self.memory.accepted.map(Floor::accepted);
        trust::judge(verified, &device, accepted, self.watermark(root), None)
    }

    fn take_up(&mut self, verdict: Verdict, verified: Verified, out: &mut Outcome) {
        let said = verified.announcement();
        let (manifest, bytes) = (said.manifest, said.manifest_bytes);
        match verdict {
            Verdict::PossiblyFrozen { since_s } => {
                let why = format!(
                    "its announcement was valid until {since_s} s after 1970 only; somebody may hold back later ones. \
                     Publish a fresh announcement"
                );
                self.refused(why, out);
            }
            Verdict::Known if self.memory.current == Some(manifest) => self.up_to_date(out),
            Verdict::Known | Verdict::Newer => {
                let Some(checking) = &mut self.live.checking else { return };
                checking.verified = Some(verified);
                out.effects.push(Effect::ReadManifest(checking.source.clone(), manifest, bytes));
            }
        }
    }

    fn up_to_date(&mut self, out: &mut Outcome) {
        let version = self.running().map_or_else(String::new, |running| running.version.clone());
        let text = format!("version {version} runs, which is the newest that the source announces");
        self.live.checking = None;
        self.live.said = Some(text.clone());
        out.accept(text);
    }

    pub(super) fn manifest(&mut self, offered: &Offered, now_ms: u64, out: &mut Outcome) {
        let Some(checking) = self.live.checking.clone() else { return };
        let Some(verified) = checking.verified.clone() else { return };
        let verified = &verified;
        let manifest = match trust::open_manifest(verified, &offered.manifest) {
            Ok(manifest) => manifest,
            Err(refusal) => return self.refused(words(&refusal), out),
        };
        let said = verified.announcement();
        let rank = Rank::of(said);
        let floor =
            Floor { root_version: rank.root_version, sequence: rank.sequence, manifest: said.manifest };
        let Some(running) = self.running().cloned() else { return };
        if manifest.slot().is_some_and(|(_, roothash, _)| roothash == running.roothash) {
            self.raise(floor, verified);
            self.memory.current = Some(said.manifest);
            return self.up_to_date(out);
        }
        if let (Err(failure), Intent::Poll) = (&offered.wave, checking.intent) {
            let why =
                format!("version {} waits until its wave can be read: {}", manifest.version, failure.why);
            return self.unread(why, failure.fault, now_ms, out);
        }
        if let (Ok(Some(wave)), Intent::Poll) = (&offered.wave, checking.intent)
            && self.facts.as_ref().is_some_and(|facts| !wave.reaches(&facts.id))
        {
            let share = f64::from(wave.share) / 100.0;
            let text = format!(
                "version {} waits for its wave: {share} % of the devices may take it by now",
                manifest.version
            );
            self.live.checking = None;
            self.live.said = Some(text.clone());
            return out.refuse(text);
        }
        self.live.boot_loader =
            plan::other_boot_loader(&manifest, offered.room.boot_loader).zip(offered.room.boot_loader);
        let compared = plan::Running { version: &running.version, roothash: running.roothash };
        let catalogue = self.catalogue(offered, &manifest, said.manifest, out);
        let offer = plan::Offer { manifest: &manifest, id: said.manifest, catalogue: catalogue.as_ref() };
        let plan = match plan::make(&offer, compared, &offered.room) {
            Ok(plan) => plan,
            Err(why) => return self.refused(why, out),
        };
        match (self.memory.quarantined(plan.roothash), checking.intent) {
            (Some(failed), Intent::Poll | Intent::Plan) => {
                let why = format!(
                    "version {} failed here ({}); publish another, or insist with `update --now`",
                    failed.version, failed.why
                );
                self.refused(why, out);
            }
            (None, Intent::Plan) => {
                self.live.checking = None;
                out.accept(describe(&plan, &checking.source));
            }
            (_, Intent::Now) | (None, Intent::Poll) => {
                self.raise(floor, verified);
                self.take(plan, checking, now_ms, out);
            }
        }
    }

    /// Further payloads; without a good catalogue the release's own do.
    fn catalogue(
        &self,
        offered: &Offered,
        manifest: &Manifest,
        id: Digest,
        out: &mut Outcome,
    ) -> Option<Catalogue> {
        let bytes = offered.catalogue.as_ref()?;
        match Catalogue::open(bytes, self.root.as_ref()?, &id, manifest) {
            Ok(catalogue) => Some(catalogue),
            Err(error) => {
                out.note(
                    "update-catalogue",
                    format!("{}; the release's own payloads are used", words(&error)),
                );
                None
            }
        }
    }

    /// Remembers an accepted announcement: neither number ever goes down under one root.
    fn raise(&mut self, floor: Floor, verified: &Verified) {
        if let Some(root) = &self.root {
            self.memory.watermark_s = self.watermark(root).after(verified, root).seconds();
        }
        self.memory.accepted = Some(floor);
    }

    fn take(&mut self, plan: Plan, checking: Checking, now_ms: u64, out: &mut Outcome) {
        let (source, intent) = (checking.source, checking.intent);
        self.live.checking = None;
        self.live.said = None;
        let release = plan.release();
        self.memory.quarantine.retain(|failed| failed.roothash != release.roothash);
        if let Phase::Fetching(attempt) = &mut self.memory.phase
            && attempt.plan.manifest == plan.manifest
        {
            // The same release: what is fetched stays good, wherever the rest comes from. A look of our own does not
            // shorten a wait that the source asked for.
            if attempt.source == source && (self.live.working || intent == Intent::Poll) {
                return out.accept(format!("version {} is being fetched already", release.version));
            }
            out.note("update-source", format!("version {} now comes from {source}", release.version));
            let failures = attempt.failures;
            **attempt = Attempt { plan, source, slot_way: 0, uki_way: 0, failures, rounds: 0 };
        } else {
            let bytes = plan.fetch_bytes();
            out.note(
                "update-accepted",
                format!("version {} from {source}: {} KiB to fetch", release.version, bytes >> 10),
            );
            self.live.fetched = 0;
            let attempt = Attempt { plan, source, slot_way: 0, uki_way: 0, failures: 0, rounds: 0 };
            self.memory.phase = Phase::Fetching(Box::new(attempt));
        }
        out.accept(format!("version {} is being fetched; see `farhold-agent status`", release.version));
        self.live.failures = 0;
        self.live.retry_ms = None;
        self.live.stuck = None;
        out.effects.push(Effect::Cancel);
        self.fetch(now_ms, out);
    }
}

/// A plan for people.
fn describe(plan: &Plan, source: &str) -> String {
    let way = |made: &plan::Made| {
        made.ways.first().map_or_else(
            || "no way".to_owned(),
            |way| match &way.method {
                plan::Method::Plain => format!("{} KiB as they are", way.object.bytes >> 10),
                plan::Method::Zstd { .. } => format!("{} KiB, compressed", way.object.bytes >> 10),
                plan::Method::Delta { .. } => format!("{} KiB, a delta", way.object.bytes >> 10),
                plan::Method::Adaptive { index_bytes, most } => {
                    format!("{} to {} KiB, what the running slot lacks", index_bytes >> 10, most >> 10)
                }
            },
        )
    };
    let place = match plan.place {
        plan::Place::State => "kept on /var until it is complete; the other slot stays as it is until then",
        plan::Place::Slot => "kept in the other slot: nothing to go back to until the update ends",
    };
    format!(
        "version {} from {source} would be installed: slot image {} KiB from {}; UKI {} KiB from {}; {place}",
        plan.version,
        plan.slot.target.bytes >> 10,
        way(&plan.slot),
        plan.uki.target.bytes >> 10,
        way(&plan.uki)
    )
}
