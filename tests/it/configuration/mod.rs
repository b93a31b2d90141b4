//! What the configuration says, and what `check` and `explain` say of it.

mod causes;
mod example;
mod explain;
mod explain_agrees;
mod files;
mod golden;
mod gradual;
mod warnings;
