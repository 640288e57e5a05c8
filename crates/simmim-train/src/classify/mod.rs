//! Classifiers put to use: the file that holds one, its scores, pictures of them, and the comparison with training from scratch.

mod compare;
mod confusion;
mod file;
mod plot;
mod scores;

pub use compare::{Arm, ArmResult, Comparison, Finding, Method, RateTrial, Summary};
pub use confusion::{confusion_csv, draw_confusion};
pub use file::ClassifierFile;
pub use plot::draw_comparison;
pub use scores::{ClassScore, Scores, softmax};
