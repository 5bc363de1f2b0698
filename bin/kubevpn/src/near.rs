//! Names that are nearly the one that was typed.

/// Edits between a name and a suggestion, at most; a name of few letters has fewer.
const EDITS: usize = 2;

/// The nearest of the names, unless one is the very same or none is near.
pub(crate) fn nearest<'a>(typed: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let most = EDITS.min(typed.chars().count() / 2);
    let measured = names.map(|name| (strsim::osa_distance(typed, name), name));
    let (edits, name) = measured.min()?;
    (1..=most).contains(&edits).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_and_not() {
        let names = ["productpage", "reviews", "db"];
        let near = |typed: &str| nearest(typed, names.into_iter());
        assert_eq!(near("productpag"), Some("productpage"));
        assert_eq!(near("reveiws"), Some("reviews"));
        assert_eq!(near("dv"), Some("db"));
        for other in ["reviews", "ratings", "x", ""] {
            assert_eq!(near(other), None, "{other}");
        }
    }
}
