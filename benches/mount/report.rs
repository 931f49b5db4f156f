//! What was measured, for people and for programs.

use serde::Serialize;

/// All rows of a run, with what they were measured on.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: String,
    net: String,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    what: String,
    value: f64,
    unit: &'static str,
    ceiling: Option<f64>,
    ceiling_is: String,
}

impl Report {
    pub(crate) fn new(net: &str) -> Self {
        Self { machine: machine(), net: net.to_owned(), rows: Vec::new() }
    }

    /// A figure that stands alone.
    pub(crate) fn add(&mut self, what: &str, value: f64, unit: &'static str) {
        self.rows.push(Row { what: what.into(), value, unit, ceiling: None, ceiling_is: String::new() });
    }

    /// A figure beside what it is to be held against.
    pub(crate) fn add_beside(
        &mut self,
        what: &str,
        value: f64,
        unit: &'static str,
        ceiling: f64,
        ceiling_is: &str,
    ) {
        self.rows.push(Row {
            what: what.into(),
            value,
            unit,
            ceiling: Some(ceiling),
            ceiling_is: ceiling_is.into(),
        });
    }

    /// A table on standard output.
    pub(crate) fn print(&self) {
        println!("{}; {}\n", self.machine, self.net);
        println!("| what | value | beside | ratio |\n| --- | ---: | ---: | ---: |");
        for row in &self.rows {
            let value = format!("{:.2} {}", row.value, row.unit);
            match row.ceiling {
                Some(ceiling) => println!(
                    "| {} | {value} | {ceiling:.2} {} ({}) | {:.2} |",
                    row.what,
                    row.unit,
                    row.ceiling_is,
                    row.value / ceiling
                ),
                None => println!("| {} | {value} | | |", row.what),
            }
        }
    }
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    format!(
        "{cores} cores,{}, Linux {}",
        model.trim_start_matches([' ', '\t', ':']).replace(['\t'], ""),
        kernel.trim()
    )
}
