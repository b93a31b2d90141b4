//! The configuration, `check` and `explain`.

mod causes;
mod example;
mod explain;
mod explain_agrees;
mod files;
mod golden;
mod gradual;
mod json_schema;
mod warnings;
