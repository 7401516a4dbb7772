//! Texts that have to fit.

/// No more than so many bytes of a text, whole characters.
pub fn clipped(text: &str, most: usize) -> String {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::clipped;

    #[test]
    fn a_character_is_whole_or_gone() {
        for (most, expected) in [(0, ""), (1, "a"), (2, "a"), (3, "aµ"), (9, "aµb")] {
            assert_eq!(clipped("aµb", most), expected, "{most}");
        }
    }
}
