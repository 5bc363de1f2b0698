//! Probes: whether a session still works, judged by its PINGs.
//!
//! A probe is five PINGs. The server's SPDY library (moby/spdystream, in every API server, kubelet and container
//! runtime so far) gives frames to five workers: a stream's by its number, PINGs in turn. If one echo of five is missing,
//! a worker is stopped by data that nobody reads. If all are missing, the connection is dead.

use std::time::Duration;

use crate::config::Config;

/// Number of PINGs that reach every worker of the server.
pub(crate) const PINGS: u8 = 5;

/// The probes of one session.
#[derive(Debug, Default)]
pub(crate) struct Probe {
    running: Option<RunningProbe>,
    /// Number of the probe, so that a late echo does not count for the next one.
    round: u64,
    /// Probe once more after the running one: the new suspicion came after its PINGs.
    again: bool,
    suspect: bool,
    /// When the last complete probe was sent.
    proven: u64,
}

#[derive(Debug)]
struct RunningProbe {
    sent: u64,
    renewed: u64,
    echoes: u8,
    first: u64,
}

/// What is known of a session when it is judged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionActivity {
    pub(crate) now: u64,
    /// When the last byte came.
    pub(crate) heard: u64,
    /// We do not read the session, because a client does not read its stream.
    pub(crate) held_up: bool,
    /// One of its connections has sent so much that a Pod that does not read may hold the session up.
    pub(crate) upload: bool,
    /// The session has only one connection.
    pub(crate) alone: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProbeVerdict {
    /// No verdict yet.
    Wait,
    /// Nothing comes back.
    Dead,
    /// Some PINGs have an echo, or an upload holds up the rest.
    Wedged,
}

impl Probe {
    pub(crate) fn new(now: u64) -> Self {
        Self {
            proven: now,
            ..Self::default()
        }
    }

    /// Suspects the session. Returns the round of PINGs to send, if any.
    pub(crate) fn suspect(&mut self, now: u64) -> Option<u64> {
        self.suspect = true;
        self.start(now)
    }

    /// Starts a routine probe; returns as [`Probe::suspect`].
    pub(crate) fn start(&mut self, now: u64) -> Option<u64> {
        if self.running.is_some() {
            self.again |= self.suspect;
            return None;
        }
        self.round += 1;
        self.running = Some(RunningProbe {
            sent: now,
            renewed: now,
            echoes: 0,
            first: 0,
        });
        Some(self.round)
    }

    /// Notes an echo. `true` if it completes its round: everything sent before was carried.
    pub(crate) fn echo(&mut self, round: u64, now: u64) -> bool {
        if round != self.round {
            return false;
        }
        let Some(running) = &mut self.running else {
            return false;
        };
        if running.echoes == 0 {
            running.first = now;
        }
        running.echoes += 1;
        if running.echoes < PINGS {
            return false;
        }
        self.proven = running.sent;
        self.running = None;
        true
    }

    /// After a complete round: the next one, if it is due.
    pub(crate) fn again(&mut self, now: u64) -> Option<u64> {
        if std::mem::take(&mut self.again) {
            return self.start(now);
        }
        self.suspect = false;
        None
    }

    /// Starts another round when the running one is this old: PINGs keep the connection alive, and a wedged session is
    /// still watched.
    pub(crate) fn renew(&mut self, now: u64, after: u64) -> Option<u64> {
        let running = self.running.as_mut()?;
        if now.saturating_sub(running.renewed) < after {
            return None;
        }
        running.renewed = now;
        if running.echoes > 0 {
            running.sent = now;
            running.echoes = 0;
        }
        self.round += 1;
        Some(self.round)
    }

    /// The round's echoes cannot be noted any more, or its PINGs were never sent.
    pub(crate) fn abandon(&mut self, round: u64) {
        if round == self.round {
            self.running = None;
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect
    }

    pub(crate) fn proven(&self) -> u64 {
        self.proven
    }

    pub(crate) fn judge(&mut self, seen: SessionActivity, config: &Config) -> ProbeVerdict {
        let Some(running) = &mut self.running else {
            return ProbeVerdict::Wait;
        };
        if seen.held_up {
            // The echoes are queued behind data that we do not read: the wait begins when we read again.
            running.sent = seen.now;
            running.first = seen.now;
            return ProbeVerdict::Wait;
        }
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let patience = ms(match (seen.upload, seen.alone) {
            (false, _) => config.probe_timeout,
            (true, false) => config.stall,
            (true, true) => config.upload_patience,
        });
        if running.echoes == 0 {
            // Arriving data shows that the connection lives; the echoes may be queued behind it.
            let silent = seen.now.saturating_sub(running.sent.max(seen.heard));
            return match silent >= patience {
                false => ProbeVerdict::Wait,
                true if seen.upload && !seen.alone => ProbeVerdict::Wedged,
                true => ProbeVerdict::Dead,
            };
        }
        if seen.upload && seen.alone {
            // The other echoes show that the session lives, and its only connection waits for its Pod.
            return ProbeVerdict::Wait;
        }
        match seen.now.saturating_sub(running.first) >= patience {
            true => ProbeVerdict::Wedged,
            false => ProbeVerdict::Wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(now: u64, heard: u64) -> SessionActivity {
        SessionActivity {
            now,
            heard,
            held_up: false,
            upload: false,
            alone: false,
        }
    }

    fn judge(probe: &mut Probe, seen: SessionActivity) -> ProbeVerdict {
        probe.judge(seen, &Config::default())
    }

    #[test]
    fn five_echoes_prove_it() {
        let mut probe = Probe::new(0);
        let round = probe.suspect(1_000).unwrap();
        assert!(probe.is_suspect());
        for _ in 0..4 {
            assert!(!probe.echo(round, 1_001));
        }
        assert!(!probe.echo(round + 1, 1_001), "not of this round");
        assert!(probe.echo(round, 1_002));
        assert_eq!(probe.again(1_002), None);
        assert!(!probe.is_suspect());
        assert_eq!(probe.proven(), 1_000);
        assert_eq!(judge(&mut probe, seen(99_000, 0)), ProbeVerdict::Wait);
    }

    #[test]
    fn doubts_during_a_probe_need_another() {
        let mut probe = Probe::new(0);
        let round = probe.start(10).unwrap();
        assert_eq!(probe.suspect(11), None);
        for _ in 0..5 {
            probe.echo(round, 12);
        }
        let next = probe.again(12).unwrap();
        assert!(probe.is_suspect());
        for _ in 0..5 {
            probe.echo(next, 13);
        }
        assert_eq!(probe.again(13), None);
        assert!(!probe.is_suspect());
    }

    #[test]
    fn silence_is_death() {
        let mut probe = Probe::new(0);
        probe.start(10_000);
        assert_eq!(judge(&mut probe, seen(12_999, 10_000)), ProbeVerdict::Wait);
        assert_eq!(judge(&mut probe, seen(13_000, 10_000)), ProbeVerdict::Dead);
    }

    #[test]
    fn a_session_full_of_downloads_is_not_dead() {
        let mut probe = Probe::new(0);
        probe.start(10_000);
        assert_eq!(judge(&mut probe, seen(30_000, 29_000)), ProbeVerdict::Wait);
        assert_eq!(judge(&mut probe, seen(33_000, 29_000)), ProbeVerdict::Dead);
    }

    #[test]
    fn a_missing_echo_is_a_stopped_worker() {
        let mut probe = Probe::new(0);
        let round = probe.start(10_000).unwrap();
        for _ in 0..4 {
            probe.echo(round, 10_001);
        }
        assert_eq!(judge(&mut probe, seen(13_000, 13_000)), ProbeVerdict::Wait);
        assert_eq!(
            judge(&mut probe, seen(13_001, 13_001)),
            ProbeVerdict::Wedged
        );
    }

    #[test]
    fn a_session_that_is_not_read_is_not_judged() {
        let mut probe = Probe::new(0);
        probe.start(10_000);
        let held_up = SessionActivity {
            held_up: true,
            ..seen(60_000, 11_000)
        };
        assert_eq!(judge(&mut probe, held_up), ProbeVerdict::Wait);
        assert_eq!(judge(&mut probe, seen(62_999, 11_000)), ProbeVerdict::Wait);
        assert_eq!(judge(&mut probe, seen(63_000, 11_000)), ProbeVerdict::Dead);
    }

    #[test]
    fn nor_when_some_of_the_echoes_came_before() {
        let mut probe = Probe::new(0);
        let round = probe.start(10_000).unwrap();
        probe.echo(round, 10_001);
        let held_up = SessionActivity {
            held_up: true,
            ..seen(60_000, 11_000)
        };
        assert_eq!(judge(&mut probe, held_up), ProbeVerdict::Wait);
        assert_eq!(judge(&mut probe, seen(62_999, 61_000)), ProbeVerdict::Wait);
        assert_eq!(
            judge(&mut probe, seen(63_000, 61_000)),
            ProbeVerdict::Wedged
        );
    }

    #[test]
    fn a_pod_that_does_not_read_an_upload_is_waited_for() {
        let mut probe = Probe::new(0);
        probe.start(0);
        let alone = |now| SessionActivity {
            upload: true,
            alone: true,
            ..seen(now, 0)
        };
        assert_eq!(judge(&mut probe, alone(299_000)), ProbeVerdict::Wait);
        assert_eq!(judge(&mut probe, alone(300_000)), ProbeVerdict::Dead);
        // Other connections on the session do not wait as long for an upload that is not theirs.
        let shared = |now| SessionActivity {
            upload: true,
            ..seen(now, 0)
        };
        assert_eq!(judge(&mut probe, shared(9_999)), ProbeVerdict::Wait);
        assert_eq!(judge(&mut probe, shared(10_000)), ProbeVerdict::Wedged);
    }

    #[test]
    fn a_wedged_session_can_die() {
        let mut probe = Probe::new(0);
        let round = probe.start(0).unwrap();
        probe.echo(round, 1);
        assert_eq!(judge(&mut probe, seen(29_999, 1)), ProbeVerdict::Wedged);
        assert_eq!(probe.renew(29_999, 30_000), None);
        assert!(probe.renew(30_000, 30_000).is_some());
        assert!(!probe.echo(round, 30_001), "of the round before");
        assert_eq!(judge(&mut probe, seen(32_999, 1)), ProbeVerdict::Wait);
        assert_eq!(judge(&mut probe, seen(33_000, 1)), ProbeVerdict::Dead);
        // The deadline of a silent upload does not move when it is pinged again.
        let mut probe = Probe::new(0);
        probe.start(0);
        for at in [30_000, 60_000] {
            assert!(probe.renew(at, 30_000).is_some());
        }
        let alone = SessionActivity {
            upload: true,
            alone: true,
            ..seen(300_000, 0)
        };
        assert_eq!(judge(&mut probe, alone), ProbeVerdict::Dead);
    }

    #[test]
    fn an_upload_may_wedge_one_worker() {
        let mut probe = Probe::new(0);
        let round = probe.start(0).unwrap();
        probe.echo(round, 1);
        let alone = SessionActivity {
            upload: true,
            alone: true,
            ..seen(10_000_000, 0)
        };
        assert_eq!(judge(&mut probe, alone), ProbeVerdict::Wait);
    }
}
