//! After any sequence of changes and broken watches, a subscriber has the answer that a new lookup gets.

use std::time::Duration;

use proptest::prelude::*;
use tokio::time::sleep;

use super::*;
use crate::resolve::tests::{CHANGING, PODS, SERVICES, SLICES, pod_of, service_of, slice_of};

/// A random event.
#[derive(Clone, Debug)]
enum Step {
    Service {
        name: usize,
        shape: usize,
    },
    Slice {
        name: usize,
        of: usize,
        pods: usize,
        shape: usize,
    },
    Pod {
        name: usize,
        shape: usize,
    },
    Delete {
        kind: usize,
        name: usize,
    },
    /// A lookup, which keeps the selection from then on.
    Ask(usize),
    /// All tasks run until they are idle.
    Settle,
    Pass(u64),
    Cut,
    Break,
    Forget {
        as_event: bool,
    },
    Bookmark,
    Away(bool),
}

const KINDS: [(&str, &[&str]); 3] = [
    ("services", &SERVICES),
    ("endpointslices", &SLICES),
    ("pods", &PODS),
];

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_usize, 0..6_usize).prop_map(|(name, shape)| Step::Service { name, shape }),
        6 => (0..4_usize, 0..3_usize, 0..16_usize, 0..6_usize)
            .prop_map(|(name, of, pods, shape)| Step::Slice { name, of, pods, shape }),
        3 => (0..4_usize, 0..3_usize).prop_map(|(name, shape)| Step::Pod { name, shape }),
        3 => (0..3_usize, 0..4_usize).prop_map(|(kind, name)| Step::Delete { kind, name }),
        6 => (0..CHANGING.len()).prop_map(Step::Ask),
        4 => Just(Step::Settle),
        2 => (0..8_000_u64).prop_map(Step::Pass),
        1 => Just(Step::Cut),
        1 => Just(Step::Break),
        1 => any::<bool>().prop_map(|as_event| Step::Forget { as_event }),
        1 => Just(Step::Bookmark),
        1 => any::<bool>().prop_map(Step::Away),
    ]
}

async fn happen(api: &FakeApi, cluster: &Cluster, step: Step) {
    match step {
        Step::Service { name, shape } => drop(api.apply(&service_of(name, shape))),
        Step::Slice {
            name,
            of,
            pods,
            shape,
        } => drop(api.apply(&slice_of(name, of, pods, shape))),
        Step::Pod { name, shape } => drop(api.apply(&pod_of(name, shape))),
        Step::Delete { kind, name } => {
            let (kind, names) = KINDS[kind];
            api.delete(kind, "default", names[name % names.len()]);
        }
        Step::Ask(target) => drop(ask(cluster, CHANGING[target]).await),
        Step::Settle => sleep(Duration::from_millis(5)).await,
        Step::Pass(ms) => sleep(Duration::from_millis(ms)).await,
        Step::Cut => api.cut_watches(),
        Step::Break => api.break_watches(),
        Step::Forget { as_event } => api.forget_history(as_event),
        Step::Bookmark => api.bookmark(),
        Step::Away(away) => api.away(away),
    }
}

/// The complete answer, including readiness and reasons.
fn all(answer: Result<Answer, LookupError>) -> String {
    format!("{answer:?}")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_follower_has_the_same_answer_as_a_new_lookup(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let api = FakeApi::default();
            let old = cluster(&api);
            for step in steps.clone() {
                happen(&api, &old, step).await;
            }
            api.away(false);
            // Longer than any back-off, and than any expiry without a watch.
            sleep(Duration::from_secs(11)).await;
            let new = cluster(&api);
            for target in CHANGING {
                let (known, found) = (all(ask(&old, target).await), all(ask(&new, target).await));
                assert_eq!(known, found, "{target} after {steps:#?}");
            }
        });
    }
}
