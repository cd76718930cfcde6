//! Figures, and what is shown of them.

use crate::Result;
use crate::engines::Kind;
use crate::workload::{Unit, Workload};
use std::fmt::Write as _;
use std::path::Path;

/// One figure of one process.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) round: u32,
    pub(crate) workload: Workload,
    /// The size of the journal in MB, with [`Workload::Flat`].
    pub(crate) size_mb: Option<u64>,
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) value: f64,
}

/// What the figure of a workload is called.
pub(crate) const FIGURE: &str = "figure";

/// The median with the range around it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) least: f64,
    pub(crate) median: f64,
    pub(crate) most: f64,
}

impl Spread {
    /// `None` of nothing.
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let half = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[half] } else { f64::midpoint(values[half - 1], values[half]) };
        Some(Self { least, median, most })
    }
}

/// The value that a share of the sorted values does not exceed.
pub(crate) fn percentile<T: Copy>(sorted: &[T], share: f64) -> Option<T> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in a slice")]
    let rank = (share.clamp(0.0, 1.0) * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// All figures of one name of a workload and an engine, in the order of rounds.
pub(crate) fn values(
    samples: &[Sample],
    workload: Workload,
    size_mb: Option<u64>,
    kind: Kind,
    name: &str,
) -> Vec<f64> {
    let wanted = |s: &&Sample| (s.workload, s.size_mb, s.kind) == (workload, size_mb, kind) && s.name == name;
    samples.iter().filter(wanted).map(|sample| sample.value).collect()
}

/// How an engine stands to the limit in each round that both have a figure of. More is better.
pub(crate) fn ratios(samples: &[Sample], workload: Workload, kind: Kind) -> Vec<f64> {
    ratios_to(samples, workload, kind, Kind::Limit)
}

fn ratios_to(samples: &[Sample], workload: Workload, kind: Kind, base: Kind) -> Vec<f64> {
    let figures =
        |of: Kind| samples.iter().filter(move |s| s.workload == workload && s.kind == of && s.name == FIGURE);
    figures(kind)
        .filter_map(|its| {
            let base = figures(base).find(|base| base.round == its.round)?.value;
            let less_is_better = workload.unit() != Unit::PerSecond;
            Some(if less_is_better { base / its.value } else { its.value / base })
        })
        .collect()
}

/// The workloads and the engines that there are figures of, in their order.
pub(crate) fn rows_and_columns(samples: &[Sample]) -> (Vec<Workload>, Vec<Kind>) {
    let mut workloads: Vec<_> =
        samples.iter().map(|s| s.workload).filter(|workload| *workload != Workload::Flat).collect();
    workloads.sort_unstable();
    workloads.dedup();
    let mut kinds: Vec<_> = samples.iter().map(|sample| sample.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    (workloads, kinds)
}

/// The table: rates as ratios to the limit, times and sizes as they are.
pub(crate) fn markdown(samples: &[Sample]) -> String {
    let (workloads, kinds) = rows_and_columns(samples);
    if workloads.is_empty() {
        return String::new();
    }
    let mut text = String::from("| | workload |");
    for kind in &kinds {
        text.extend([" ", kind.word(), " |"]);
    }
    let _ = writeln!(text, "\n|---|---|{}", "---:|".repeat(kinds.len()));
    for workload in workloads {
        let _ = write!(text, "| {} | {} |", workload.word(), workload.title());
        for kind in &kinds {
            let cell = cell(samples, workload, *kind).unwrap_or_else(|| "–".to_owned());
            let _ = write!(text, " {cell} |");
        }
        text.push('\n');
    }
    text
}

fn cell(samples: &[Sample], workload: Workload, kind: Kind) -> Option<String> {
    let own = Spread::of(values(samples, workload, None, kind, FIGURE))?;
    Some(match workload.unit() {
        Unit::PerSecond if kind == Kind::Limit => format!("{}/s", thousands(own.median)),
        Unit::PerSecond => match Spread::of(ratios(samples, workload, kind)) {
            Some(ratio) => format!("{:.2} ({:.2}–{:.2})", ratio.median, ratio.least, ratio.most),
            None => format!("{}/s", thousands(own.median)),
        },
        Unit::Milliseconds => format!("{:.2} ms ({:.2}–{:.2})", own.median, own.least, own.most),
        Unit::Bytes => format!("{:.0}", own.median),
    })
}

/// The table of two builds beside each other.
pub(crate) fn other_markdown(samples: &[Sample]) -> String {
    let mut text = String::new();
    for workload in rows_and_columns(samples).0 {
        let ratios = ratios_to(samples, workload, Kind::RunwalOther, Kind::Runwal);
        if let Some(Spread { least, median, most }) = Spread::of(ratios) {
            let _ = writeln!(text, "| {} | {median:.2} ({least:.2}–{most:.2}) |", workload.word());
        }
    }
    if text.is_empty() { text } else { format!("\n| | runwal-other to runwal |\n|---|---:|\n{text}") }
}

/// What must not grow with the journal: by its name, what it is, and its unit.
pub(crate) const FIGURES_OF_FLAT: [(&str, &str, &str); 3] = [
    ("open_and_append_ms", "open and first append", "ms"),
    ("append_us", "append", "µs"),
    ("peak_mib", "peak memory", "MiB"),
];

/// The journals of several sizes that there are figures of, by engine.
pub(crate) fn journals(samples: &[Sample]) -> Vec<(Kind, u64)> {
    let mut journals: Vec<_> =
        samples.iter().filter_map(|sample| Some((sample.kind, sample.size_mb?))).collect();
    journals.sort_unstable();
    journals.dedup();
    journals
}

/// The table of what must not grow with the journal.
pub(crate) fn flat_markdown(samples: &[Sample]) -> String {
    let journals = journals(samples);
    if journals.is_empty() {
        return String::new();
    }
    let mut text = String::from("| engine | journal | open |");
    for (_, title, _) in FIGURES_OF_FLAT {
        let _ = write!(text, " {title} |");
    }
    let _ = writeln!(text, "\n|---|---:|---:|{}", "---:|".repeat(FIGURES_OF_FLAT.len()));
    for (kind, size) in journals {
        let _ = write!(text, "| {} | {} MB |", kind.word(), thousands(size as f64));
        let figures = FIGURES_OF_FLAT.map(|(name, _, unit)| (name, unit));
        for (name, unit) in [(FIGURE, "ms")].into_iter().chain(figures) {
            let cell = Spread::of(values(samples, Workload::Flat, Some(size), kind, name))
                .map_or_else(|| "–".to_owned(), |s| format!("{:.2} {unit}", s.median));
            let _ = write!(text, " {cell} |");
        }
        text.push('\n');
    }
    text
}

/// A whole number with its thousands apart.
pub(crate) fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (nth, digit) in digits.chars().enumerate() {
        if nth > 0 && (digits.len() - nth) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// All figures, one a line.
pub(crate) fn write_csv(samples: &[Sample], file: &Path) -> Result<()> {
    let mut text = String::from("round,workload,journal_mb,engine,name,value\n");
    for Sample { round, workload, size_mb, kind, name, value } in samples {
        let size = size_mb.map(|size| size.to_string()).unwrap_or_default();
        let _ = writeln!(text, "{round},{},{size},{},{name},{value}", workload.word(), kind.word());
    }
    Ok(std::fs::write(file, text)?)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample(round: u32, workload: Workload, kind: Kind, value: f64) -> Sample {
        Sample { round, workload, size_mb: None, kind, name: FIGURE.to_owned(), value }
    }

    #[test]
    fn percentiles_are_values_that_were_there() {
        let values: Vec<u32> = (1..=100).collect();
        assert_eq!(percentile(&values, 0.5), Some(50));
        assert_eq!(percentile(&values, 0.99), Some(99));
        assert_eq!(percentile(&values, 0.0), Some(1));
        assert_eq!(percentile(&values, 1.0), Some(100));
        assert_eq!(percentile(&[7], 0.5), Some(7));
        assert_eq!(percentile::<u32>(&[], 0.5), None);
    }

    #[test]
    fn a_spread_has_its_median_in_the_middle() {
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]), Some(Spread { least: 1.0, median: 2.0, most: 3.0 }));
        assert_eq!(Spread::of(vec![4.0, 1.0]), Some(Spread { least: 1.0, median: 2.5, most: 4.0 }));
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let samples = [
            sample(0, Workload::W1, Kind::Limit, 100.0),
            sample(0, Workload::W1, Kind::Runwal, 90.0),
            sample(1, Workload::W1, Kind::Runwal, 30.0),
            sample(1, Workload::W1, Kind::Limit, 40.0),
            sample(2, Workload::W1, Kind::Runwal, 1.0),
            sample(0, Workload::W4, Kind::Limit, 1.0),
            sample(0, Workload::W4, Kind::Runwal, 4.0),
        ];
        assert_eq!(ratios(&samples, Workload::W1, Kind::Runwal), [0.9, 0.75]);
        assert_eq!(ratios(&samples, Workload::W4, Kind::Runwal), [0.25]);
        assert_eq!(other_markdown(&samples), "");
        let other = [(0, 45.0), (1, 60.0), (2, 1.5)];
        let other = other.map(|(round, value)| sample(round, Workload::W1, Kind::RunwalOther, value));
        let table = other_markdown(&[samples.to_vec(), other.to_vec()].concat());
        assert!(table.ends_with("---:|\n| w1 | 1.50 (0.50–2.00) |\n"), "{table}");
    }

    #[test]
    fn the_table_says_what_is_missing() {
        let samples = [
            sample(0, Workload::W1, Kind::Limit, 9755.4),
            sample(0, Workload::W1, Kind::Runwal, 9755.4),
            sample(0, Workload::W4, Kind::Limit, 0.554),
            sample(0, Workload::W6, Kind::Runwal, 275.0),
        ];
        assert_eq!(
            markdown(&samples),
            "| | workload | limit | runwal |\n\
             |---|---|---:|---:|\n\
             | w1 | one writer, each append durable | 9,755/s | 1.00 (1.00–1.00) |\n\
             | w4 | open after a clean end | 0.55 ms (0.55–0.55) | – |\n\
             | w6 | bytes on disk per event | – | 275 |\n"
        );
        assert_eq!(markdown(&[]), "");
        assert_eq!(thousands(1_234_567.2), "1,234,567");
        assert_eq!(thousands(12.0), "12");
    }
}
