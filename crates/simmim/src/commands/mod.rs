//! One file for each verb.

pub(crate) mod bench;
pub(crate) mod embed;
pub(crate) mod features;
pub(crate) mod inspect;
pub(crate) mod neighbors;
pub(crate) mod pretrain;
pub(crate) mod probe;
pub(crate) mod recipes;
pub(crate) mod reconstruct;
pub(crate) mod weights;

use crate::diagnostics::Failure;

/// `224` or `192x256`: height and width.
pub(crate) fn parse_size(text: &str) -> Result<(usize, usize), Failure> {
    let mut parts = text.split(['x', 'X']).map(|p| p.trim().parse::<usize>().ok().filter(|&n| n > 0));
    match (parts.next().flatten(), parts.next(), parts.next()) {
        (Some(side), None, None) => Ok((side, side)),
        (Some(height), Some(Some(width)), None) => Ok((height, width)),
        _ => {
            Err(Failure::input(format!("`{text}` is not an image size"), "write 224, or HEIGHTxWIDTH such as 192x256"))
        }
    }
}
