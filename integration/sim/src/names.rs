//! What a cluster makes up: UIDs, name suffixes, hashes, ids.

/// What Kubernetes makes random names of: no vowels, and nothing that looks like something else.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// A sequence of made-up names, the same for the same seed (splitmix64).
#[derive(Debug)]
pub(crate) struct NameSequence {
    state: u64,
}

impl NameSequence {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// What stands behind the last dash of a generated name.
    pub(crate) fn suffix(&mut self) -> String {
        letters(self.number(), 5)
    }

    /// A version 4 UUID.
    pub(crate) fn uid(&mut self) -> String {
        let (a, b) = (self.number(), self.number());
        let a = a & 0xffff_ffff_ffff_0fff | 0x4000;
        let b = b & 0x3fff_ffff_ffff_ffff | 0x8000_0000_0000_0000;
        format!(
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            a >> 32,
            a >> 16 & 0xffff,
            a & 0xffff,
            b >> 48,
            b & 0xffff_ffff_ffff
        )
    }

    /// A container's or sandbox's id: 64 hex digits.
    pub(crate) fn id(&mut self) -> String {
        (0..4).map(|_| format!("{:016x}", self.number())).collect()
    }
}

/// The hash of a pod template, as it stands in its pods' names: the same for the same text.
pub(crate) fn template_hash(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    });
    letters(mix(hash), 9)
}

fn letters(mut number: u64, count: usize) -> String {
    let base = ALPHABET.len() as u64;
    (0..count)
        .map(|_| {
            let letter = ALPHABET[(number % base) as usize];
            number /= base;
            char::from(letter)
        })
        .collect()
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        let mut names = NameSequence::new(1);
        let uid = names.uid();
        let parts: Vec<_> = uid.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert_eq!(&uid[14..15], "4", "{uid}");
        assert!("89ab".contains(&uid[19..20]), "{uid}");
        assert_eq!(names.suffix().len(), 5);
        assert_eq!(names.id().len(), 64);
        assert_eq!(template_hash("a"), template_hash("a"));
        assert_ne!(template_hash("a"), template_hash("b"));
    }

    #[test]
    fn a_seed_fixes_the_sequence() {
        let (mut a, mut b, mut c) = (
            NameSequence::new(7),
            NameSequence::new(7),
            NameSequence::new(8),
        );
        assert_eq!(a.uid(), b.uid());
        assert_ne!(a.uid(), c.uid());
    }
}
