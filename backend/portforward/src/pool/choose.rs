//! Policy: which session a new connection gets, as a pure function.
//!
//! A connection on a session of its own can neither stall others nor be stalled. So connections opened now and then get one
//! each, up to a limit. Connections opened in quick succession are assumed to be short and share one session, with a spare
//! beside it, because each session costs every program on the way. A session that turns out to carry bulk, a client that
//! does not read, or a lasting connection gets no new connections, and the spare session takes its place.

use crate::config::Config;

/// While fewer connections than this are on the shared session, the next one takes the spare if that is free: two
/// transfers that begin together right after many short connections then use different sessions. What the servers hold
/// of the first one (15 to 34 MB) before it counts as bulk would otherwise come before all data of the second.
const FEW: usize = 4;

/// The properties of a session that matter for the choice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionView {
    /// Connections that wait for data of their Pod: neither side has ended, or the client has and was not answered.
    pub(crate) live: usize,
    /// One of its connections is not short.
    pub(crate) long: bool,
    /// It carries as many connections as allowed, including those that only wait for their end.
    pub(crate) full: bool,
    /// It carries bulk, or a client on it does not read.
    pub(crate) busy: bool,
    /// It is suspected of not working.
    pub(crate) suspect: bool,
    /// When it was last used.
    pub(crate) used: u64,
}

/// The other inputs of the choice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand {
    /// Sessions of the Pod, open or being opened, including those that take no new connections.
    pub(crate) held: usize,
    /// Upgrades under way that the dial may wait for.
    pub(crate) opening: usize,
    /// Other dials that wait for an upgrade.
    pub(crate) waiting: usize,
    /// The limit on all sessions allows one more.
    pub(crate) room: bool,
    /// How many sessions the Pod may have, not counting full, busy and suspect ones.
    pub(crate) allowance: usize,
    /// Connections are opened in quick succession.
    pub(crate) hurried: bool,
    /// The dial has not waited long yet.
    pub(crate) patient: bool,
    /// An upgrade is fast enough to wait for even if a session can be shared.
    pub(crate) quick: bool,
    /// A connection recently found no free session: keep one ready.
    pub(crate) spare: bool,
}

/// The decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) what: SessionChoice,
    /// Ask for one more session.
    pub(crate) open: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionChoice {
    /// Use this free session.
    Free(usize),
    /// Share this session: none is free.
    Share(usize),
    /// Wait for an upgrade.
    Wait,
    /// There is no session, and none may be opened.
    Full,
}

pub(crate) fn choose(views: &[SessionView], demand: Demand, config: &Config) -> Choice {
    let Demand {
        opening,
        waiting,
        patient,
        ..
    } = demand;
    let usable = |v: &&(usize, SessionView)| !v.1.full && !v.1.busy && !v.1.suspect;
    let views: Vec<(usize, SessionView)> = views.iter().copied().enumerate().collect();

    // Full, busy or suspect sessions do not count towards the allowance; the hard cap is twice `sessions_per_pod`.
    let counted = views.iter().filter(usable).count() + opening;
    let room =
        demand.room && counted < demand.allowance && demand.held < 2 * config.sessions_per_pod;

    let free = || views.iter().filter(usable).filter(|(_, v)| v.live == 0);
    if demand.hurried {
        let joinable = |(_, v): &&(usize, SessionView)| !v.long && v.live < config.crowd;
        let joinable = || views.iter().filter(usable).filter(joinable);
        let taken = || joinable().filter(|(_, v)| v.live > 0);
        if let Some(&(index, fullest)) = taken().max_by_key(|(_, v)| (v.live, v.used)) {
            let open = room && joinable().count() + opening < 2;
            let alone = taken().count() == 1 && fullest.live < FEW;
            let what = match free().max_by_key(|(_, v)| v.used) {
                Some(&(spare, _)) if alone => SessionChoice::Free(spare),
                _ => SessionChoice::Share(index),
            };
            return Choice { what, open };
        }
    }
    // The most recently used one, so that the others stay idle and are closed.
    if let Some(&(index, _)) = free().max_by_key(|(_, v)| v.used) {
        let open = demand.spare && room && opening == 0 && free().count() == 1;
        let what = SessionChoice::Free(index);
        return Choice { what, open };
    }

    let fewest = |(_, v): &&(usize, SessionView)| (v.live, u64::MAX - v.used);
    let share = views.iter().filter(usable).min_by_key(fewest);
    if room {
        // One upgrade for each dial that waits, a few at a time.
        let open = opening <= waiting && opening < config.upgrades_at_once;
        let mine = opening + usize::from(open) > waiting;
        let what = match share {
            Some(&(index, _)) if !(patient && demand.quick && mine) => SessionChoice::Share(index),
            _ => SessionChoice::Wait,
        };
        return Choice { what, open };
    }
    // A suspect session is better than a busy one: a suspicion is normally settled within a round trip.
    let fallback = || {
        let rank = |(_, v): &&(usize, SessionView)| (v.busy, v.live);
        views.iter().filter(|(_, v)| !v.full).min_by_key(rank)
    };
    let what = match share {
        Some(&(index, _)) => SessionChoice::Share(index),
        None if patient && (opening > 0 || views.iter().any(|(_, v)| v.suspect)) => {
            SessionChoice::Wait
        }
        None => match fallback() {
            Some(&(index, _)) => SessionChoice::Share(index),
            None if opening > 0 => SessionChoice::Wait,
            None => SessionChoice::Full,
        },
    };
    Choice { what, open: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: SessionView = SessionView {
        live: 0,
        long: false,
        full: false,
        busy: false,
        suspect: false,
        used: 0,
    };

    const CALM: Demand = Demand {
        held: 0,
        opening: 0,
        waiting: 0,
        room: true,
        allowance: 4,
        hurried: false,
        patient: true,
        quick: true,
        spare: false,
    };

    fn live(live: usize) -> SessionView {
        SessionView { live, ..QUIET }
    }

    fn pick(views: &[SessionView], demand: Demand) -> (SessionChoice, bool) {
        let config = Config {
            sessions_per_pod: 4,
            upgrades_at_once: 2,
            ..Config::default()
        };
        let held = views.len() + demand.opening;
        let Choice { what, open } = choose(views, Demand { held, ..demand }, &config);
        (what, open)
    }

    #[test]
    fn the_first_opens_and_waits() {
        assert_eq!(pick(&[], CALM), (SessionChoice::Wait, true));
    }

    #[test]
    fn one_after_another_uses_one() {
        assert_eq!(pick(&[QUIET], CALM), (SessionChoice::Free(0), false));
        let used = SessionView { used: 9, ..QUIET };
        assert_eq!(
            pick(&[QUIET, used, QUIET], CALM),
            (SessionChoice::Free(1), false),
            "the last used"
        );
    }

    #[test]
    fn a_spare_is_opened_when_the_last_free_one_goes() {
        let spare = Demand {
            spare: true,
            ..CALM
        };
        assert_eq!(pick(&[QUIET], spare), (SessionChoice::Free(0), true));
        assert_eq!(
            pick(&[QUIET, QUIET], spare),
            (SessionChoice::Free(1), false)
        );
        let opening = Demand {
            opening: 1,
            ..spare
        };
        assert_eq!(pick(&[QUIET], opening), (SessionChoice::Free(0), false));
    }

    #[test]
    fn while_few_each_gets_its_own() {
        assert_eq!(pick(&[live(1), live(1)], CALM), (SessionChoice::Wait, true));
        let late = Demand {
            opening: 1,
            patient: false,
            ..CALM
        };
        assert_eq!(
            pick(&[live(2), live(1)], late),
            (SessionChoice::Share(1), false),
            "but not at any price"
        );
        let far = Demand {
            quick: false,
            ..CALM
        };
        assert_eq!(pick(&[live(1)], far), (SessionChoice::Share(0), true));
        let bulk = SessionView {
            busy: true,
            ..live(1)
        };
        assert_eq!(pick(&[bulk], far), (SessionChoice::Wait, true));
    }

    #[test]
    fn a_burst_shares_rather_than_thunders() {
        let burst = |opening, waiting| Demand {
            opening,
            waiting,
            ..CALM
        };
        assert_eq!(pick(&[live(1)], burst(1, 1)), (SessionChoice::Wait, true));
        assert_eq!(
            pick(&[live(1)], burst(2, 2)),
            (SessionChoice::Share(0), false)
        );
        // Without a session there is nothing to share.
        assert_eq!(pick(&[], burst(2, 50)), (SessionChoice::Wait, false));
    }

    #[test]
    fn in_a_hurry_one_is_shared_and_one_is_spare() {
        let hurry = Demand {
            hurried: true,
            ..CALM
        };
        assert_eq!(pick(&[], hurry), (SessionChoice::Wait, true));
        assert_eq!(pick(&[QUIET], hurry), (SessionChoice::Free(0), false));
        // The spare is left alone, and no further one is opened.
        assert_eq!(pick(&[live(5)], hurry), (SessionChoice::Share(0), true));
        let spare = [live(5), live(9), QUIET];
        assert_eq!(pick(&spare, hurry), (SessionChoice::Share(1), false));
        // With few connections on the shared session, the spare is used too, and no third session is opened for that.
        assert_eq!(
            pick(&[live(1), QUIET], hurry),
            (SessionChoice::Free(1), false)
        );
        assert_eq!(
            pick(&[live(1), live(1)], hurry),
            (SessionChoice::Share(1), false)
        );
        let idle = [live(1), live(1), QUIET];
        assert_eq!(pick(&idle, hurry), (SessionChoice::Share(1), false));
        assert_eq!(
            pick(&[live(4), QUIET], hurry),
            (SessionChoice::Share(0), false)
        );
        // The spare takes over from a session that is crowded, lasting or busy.
        let long = SessionView {
            long: true,
            ..live(2)
        };
        let bulk = SessionView {
            busy: true,
            ..live(2)
        };
        let crowd = live(Config::default().crowd);
        for full in [long, bulk, crowd] {
            assert_eq!(pick(&[full, QUIET], hurry), (SessionChoice::Free(1), false));
        }
        // If no further session is allowed, sessions with lasting connections are shared.
        let tight = Demand {
            allowance: 1,
            ..hurry
        };
        assert_eq!(pick(&[long], tight), (SessionChoice::Share(0), false));
    }

    #[test]
    fn under_pressure_the_emptiest_is_shared() {
        let full = [live(3), live(2), live(2), live(3)];
        let views = [
            full[0],
            SessionView { used: 1, ..full[1] },
            SessionView { used: 2, ..full[2] },
            full[3],
        ];
        assert_eq!(pick(&views, CALM), (SessionChoice::Share(2), false));
    }

    #[test]
    fn bulk_is_left_alone() {
        let bulk = SessionView {
            busy: true,
            ..live(1)
        };
        assert_eq!(
            pick(
                &[bulk, live(2)],
                Demand {
                    room: false,
                    ..CALM
                }
            ),
            (SessionChoice::Share(1), false)
        );
        // Four downloads do not count, so that the fifth connection gets its own.
        assert_eq!(pick(&[bulk; 4], CALM), (SessionChoice::Wait, true));
        // The hard cap is twice the allowance.
        assert_eq!(pick(&[bulk; 8], CALM), (SessionChoice::Share(0), false));
        // A session that still receives for a client that left is not free.
        let draining = SessionView {
            busy: true,
            ..QUIET
        };
        assert_eq!(pick(&[draining], CALM), (SessionChoice::Wait, true));
    }

    #[test]
    fn doubtful_sessions_are_the_last_resort() {
        let doubtful = SessionView {
            suspect: true,
            ..QUIET
        };
        assert_eq!(pick(&[doubtful], CALM), (SessionChoice::Wait, true));
        let full = Demand {
            room: false,
            ..CALM
        };
        assert_eq!(
            pick(&[doubtful], full),
            (SessionChoice::Wait, false),
            "for its echo"
        );
        let late = Demand {
            patient: false,
            ..full
        };
        assert_eq!(pick(&[doubtful], late), (SessionChoice::Share(0), false));
        assert_eq!(
            pick(&[doubtful, live(5)], full),
            (SessionChoice::Share(1), false)
        );
    }

    #[test]
    fn full_sessions_do_not_count() {
        let full = SessionView {
            full: true,
            ..live(1)
        };
        let second = Demand {
            allowance: 2,
            ..CALM
        };
        assert_eq!(pick(&[full, full], second), (SessionChoice::Wait, true));
    }

    #[test]
    fn full_is_full() {
        let full = SessionView {
            full: true,
            ..QUIET
        };
        assert_eq!(pick(&[full], CALM), (SessionChoice::Wait, true));
        let no_room = Demand {
            room: false,
            ..CALM
        };
        assert_eq!(pick(&[full], no_room), (SessionChoice::Full, false));
        assert_eq!(
            pick(&[full, live(9)], no_room),
            (SessionChoice::Share(1), false)
        );
    }

    #[test]
    fn no_room_at_all() {
        let full = Demand {
            room: false,
            ..CALM
        };
        assert_eq!(pick(&[], full), (SessionChoice::Full, false));
    }
}
