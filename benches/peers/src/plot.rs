//! Small plots: a bar for each engine and workload, as high as its ratio to the limit; and a line for each engine
//! over the size of its journal.

use crate::engines::Kind;
use crate::table::{FIGURES_OF_FLAT, Sample, Spread, journals, ratios, rows_and_columns, thousands, values};
use crate::workload::Workload;
use std::fmt::Write as _;

const BAR: f64 = 7.0;
const GAP: f64 = 18.0;
const LEFT: f64 = 40.0;
const TOP: f64 = 46.0;
const HEIGHT: f64 = 200.0;
/// What is higher is cut, and its figure written on it.
const HIGHEST: f64 = 1.6;
const LEGEND: f64 = 110.0;
const LEGEND_COLUMNS: usize = 5;
const LEGEND_HEIGHT: f64 = 18.0;
/// One of the plots side by side that `flat` has, and the part of its width that is for figures.
const PANEL: f64 = 200.0;
const LINES: f64 = 140.0;
/// Told apart on white as on black, also by those who see no red.
const COLOURS: [&str; 11] = [
    "#d1495b", "#3b7dd8", "#7fb0ee", "#2a9d6f", "#85cfae", "#b07d2b", "#dfb86a", "#8c5fbf", "#5f4b3c",
    "#17becf", "#a3a80f",
];
/// Where it is not a line across.
const COLOUR_OF_LIMIT: &str = "#8a8f98";

/// The plot as SVG: the bars, and where nothing but `flat` was measured its lines. Text and axes have the colour
/// that suits a light or a dark page.
pub(crate) fn svg(samples: &[Sample]) -> String {
    if rows_and_columns(samples).0.is_empty() { lines(samples) } else { bars(samples) }
}

/// How a plot of this size begins.
fn head(width: f64, height: f64, title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" role=\"img\" aria-label=\"{title}\">\n<style>\n\
         text {{ font: 11px sans-serif; fill: #333 }} line {{ stroke: #999; stroke-width: 0.5 }}\n\
         .limit {{ stroke: #333; stroke-width: 1 }} .n {{ font-size: 8px; text-anchor: middle }} .w {{ text-anchor: middle }}\n\
         polyline {{ fill: none; stroke-width: 1.5 }}\n\
         @media (prefers-color-scheme: dark) {{ text {{ fill: #ddd }} line {{ stroke: #777 }} .limit {{ stroke: #ddd }} }}\n\
         </style>\n"
    )
}

/// The names of engines in their colours, in so many columns from here on.
fn legend(kinds: &[Kind], top: f64) -> String {
    let mut text = String::new();
    for (nth, kind) in kinds.iter().enumerate() {
        let x = LEFT + (nth % LEGEND_COLUMNS) as f64 * LEGEND;
        let y = top + (nth / LEGEND_COLUMNS) as f64 * LEGEND_HEIGHT;
        let _ = writeln!(
            text,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"10\" height=\"10\" fill=\"{}\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            colour(*kind),
            x + 14.0,
            y + 9.0,
            kind.word()
        );
    }
    text
}

fn lines(samples: &[Sample]) -> String {
    let journals = journals(samples);
    let mut kinds: Vec<_> = journals.iter().map(|(kind, _)| *kind).collect();
    kinds.dedup();
    let mut sizes: Vec<_> = journals.iter().map(|(_, size)| *size).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let bottom = TOP + HEIGHT / 2.0;
    let mut text = head(
        FIGURES_OF_FLAT.len() as f64 * PANEL + 10.0,
        bottom + 54.0,
        "What does not grow with the journal, by its size",
    );
    for (nth, (name, title, unit)) in FIGURES_OF_FLAT.into_iter().enumerate() {
        let left = nth as f64 * PANEL + LEFT;
        let spread = |kind, size| Spread::of(values(samples, Workload::Flat, Some(size), kind, name));
        let most = journals.iter().filter_map(|(kind, size)| Some(spread(*kind, *size)?.median));
        let most = most.fold(0.0, f64::max).max(f64::MIN_POSITIVE);
        let x = |nth: usize| left + (nth as f64 + 0.5) / sizes.len() as f64 * LINES;
        let y = |value: f64| bottom - value / most * (HEIGHT / 2.0);
        let _ = writeln!(text, "<text x=\"{left:.1}\" y=\"18\">{title}, {unit}</text>");
        for value in [0.0, most] {
            let (at, end) = (y(value), left + LINES);
            let _ = writeln!(
                text,
                "<line x1=\"{left:.1}\" x2=\"{end:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                left - 30.0,
                at + 4.0,
                if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") },
            );
        }
        for (nth, size) in sizes.iter().enumerate() {
            let (x, y, size) = (x(nth), bottom + 16.0, thousands(*size as f64));
            let _ = writeln!(text, "<text class=\"w\" x=\"{x:.1}\" y=\"{y:.1}\">{size} MB</text>");
        }
        for kind in &kinds {
            let (mut points, mut dots) = (String::new(), String::new());
            for (nth, size) in sizes.iter().enumerate() {
                let Some(Spread { least, median, most }) = spread(*kind, *size) else { continue };
                let (x, y) = (x(nth), y(median));
                let _ = write!(points, "{x:.1},{y:.1} ");
                let _ = writeln!(
                    dots,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{}\"><title>{} {} MB: {median:.2} {unit} \
                     ({least:.2}–{most:.2})</title></circle>",
                    colour(*kind),
                    kind.word(),
                    thousands(*size as f64),
                );
            }
            let _ =
                writeln!(text, "<polyline stroke=\"{}\" points=\"{}\"/>", colour(*kind), points.trim_end());
            text.push_str(&dots);
        }
    }
    text.push_str(&legend(&kinds, bottom + 32.0));
    text.push_str("</svg>\n");
    text
}

fn bars(samples: &[Sample]) -> String {
    let (workloads, mut kinds) = rows_and_columns(samples);
    kinds.retain(|kind| *kind != Kind::Limit);
    let group = kinds.len() as f64 * BAR + GAP;
    let bottom = TOP + HEIGHT;
    let width = (LEFT + workloads.len() as f64 * group).max(LEFT + LEGEND_COLUMNS as f64 * LEGEND) + 10.0;
    let legend_lines = kinds.len().div_ceil(LEGEND_COLUMNS) as f64;
    let height = bottom + 34.0 + legend_lines * LEGEND_HEIGHT;
    let mut text = head(width, height, "Ratio to the limit by workload and engine");
    let _ = writeln!(
        text,
        "<text x=\"{LEFT}\" y=\"18\">Ratio to the limit, the least a durable log has to do; higher is better</text>"
    );
    let y = |ratio: f64| bottom - ratio.min(HIGHEST) / HIGHEST * HEIGHT;
    for (ratio, class) in [(0.0, ""), (0.5, ""), (1.0, " class=\"limit\""), (1.5, "")] {
        let (at, end) = (y(ratio), width - 10.0);
        let _ = writeln!(
            text,
            "<line{class} x1=\"{LEFT}\" x2=\"{end:.0}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"12\" y=\"{:.1}\">{ratio:.1}</text>",
            at + 4.0
        );
    }
    for (nth, workload) in workloads.iter().enumerate() {
        let left = LEFT + nth as f64 * group + GAP / 2.0;
        let middle = left + (group - GAP) / 2.0;
        let _ = writeln!(
            text,
            "<text class=\"w\" x=\"{middle:.1}\" y=\"{:.1}\">{}</text>",
            bottom + 16.0,
            workload.word()
        );
        for (nth, kind) in kinds.iter().enumerate() {
            let Some(ratio) = Spread::of(ratios(samples, *workload, *kind)) else { continue };
            let (x, top) = (left + nth as f64 * BAR, y(ratio.median));
            let _ = writeln!(
                text,
                "<rect x=\"{x:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\">\
                 <title>{} {}: {:.2} ({:.2}–{:.2})</title></rect>",
                BAR - 1.0,
                bottom - top,
                colour(*kind),
                workload.word(),
                kind.word(),
                ratio.median,
                ratio.least,
                ratio.most,
            );
            if ratio.median > HIGHEST {
                let _ = writeln!(
                    text,
                    "<text class=\"n\" x=\"{:.1}\" y=\"{:.1}\">{:.1}</text>",
                    x + BAR / 2.0,
                    top - 3.0,
                    ratio.median
                );
            }
        }
    }
    text.push_str(&legend(&kinds, bottom + 28.0));
    text.push_str("</svg>\n");
    text
}

fn colour(kind: Kind) -> &'static str {
    match (kind as usize).checked_sub(1) {
        Some(nth) => COLOURS[nth % COLOURS.len()],
        None => COLOUR_OF_LIMIT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::tests::sample;
    use crate::workload::Workload;

    #[test]
    fn no_two_engines_have_one_colour() {
        use clap::ValueEnum;
        let kinds = Kind::value_variants().iter();
        let mut colours: Vec<_> = kinds.clone().map(|kind| colour(*kind)).collect();
        colours.sort_unstable();
        colours.dedup();
        assert_eq!(colours.len(), kinds.count());
    }

    #[test]
    fn there_is_a_bar_for_each_ratio_and_none_for_the_limit() {
        let samples = [
            sample(0, Workload::W1, Kind::Limit, 100.0),
            sample(0, Workload::W1, Kind::Runwal, 97.0),
            sample(0, Workload::W5, Kind::Limit, 1.0),
            sample(0, Workload::W5, Kind::Runwal, 9.0),
            sample(0, Workload::W5, Kind::Okaywal, 0.5),
        ];
        let svg = svg(&samples);
        assert_eq!(svg.matches("<title>").count(), 3);
        assert!(svg.contains("w1 runwal: 0.97") && svg.contains(">9.0</text>"));
        assert!(!svg.contains("limit:"));
    }

    #[test]
    fn there_is_a_point_for_each_size_and_the_highest_is_at_the_top() {
        let flat = |kind, size, name: &str, value| Sample {
            size_mb: Some(size),
            name: name.to_owned(),
            ..sample(0, Workload::Flat, kind, value)
        };
        let [(opening, ..), (append, ..), _] = FIGURES_OF_FLAT;
        let samples = [
            flat(Kind::Limit, 10, opening, 1.0),
            flat(Kind::Limit, 1000, opening, 2.0),
            flat(Kind::Runwal, 10, opening, 3.0),
            flat(Kind::Runwal, 1000, opening, 4.0),
            flat(Kind::Runwal, 1000, append, 200.0),
        ];
        let svg = svg(&samples);
        assert_eq!(svg.matches("<circle").count(), 5);
        assert_eq!(svg.matches(&format!("cy=\"{TOP:.1}\"")).count(), 2);
        assert!(svg.contains("runwal 1,000 MB: 4.00 ms") && svg.contains(">200</text>"), "{svg}");
    }
}
