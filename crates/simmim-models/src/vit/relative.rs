//! Index of the relative position bias.

/// For each pair of tokens the row of the bias table, `[tokens, tokens]` (Liu et al., arXiv 2103.14030, section 3.2).
///
/// The table has `(2 rows - 1)(2 cols - 1)` entries, and with a class token three more: class to patch, patch to class, class to
/// class (Bao et al., arXiv 2106.08254, official code).
#[must_use]
pub fn relative_position_index(rows: usize, cols: usize, class_token: bool) -> Vec<i32> {
    let patches = rows * cols;
    let entries = (2 * rows - 1) * (2 * cols - 1);
    let offset = usize::from(class_token);
    let tokens = patches + offset;
    let mut index = vec![0; tokens * tokens];
    for i in 0..patches {
        for j in 0..patches {
            let down = i / cols + rows - 1 - j / cols;
            let right = i % cols + cols - 1 - j % cols;
            index[(i + offset) * tokens + j + offset] = (down * (2 * cols - 1) + right) as i32;
        }
    }
    if class_token {
        for t in 1..tokens {
            index[t] = entries as i32;
            index[t * tokens] = entries as i32 + 1;
        }
        index[0] = entries as i32 + 2;
    }
    index
}

/// Rows of the bias table.
#[must_use]
pub(crate) fn table_entries(rows: usize, cols: usize, class_token: bool) -> usize {
    (2 * rows - 1) * (2 * cols - 1) + if class_token { 3 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_of_a_small_grid() {
        // Two patches beside each other: offsets 0, -1, +1 have the entries 1, 0, 2.
        assert_eq!(relative_position_index(1, 2, false), [1, 0, 2, 1]);
        assert_eq!(relative_position_index(1, 2, true), [5, 3, 3, 4, 1, 0, 4, 2, 1]);
        assert_eq!(table_entries(1, 2, true), 6);
    }
}
