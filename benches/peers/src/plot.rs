//! A small plot: a bar for each engine and workload, as high as its ratio to the limit.

use crate::engines::Kind;
use crate::table::{Sample, Spread, ratios, rows_and_columns};
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
/// Told apart on white as on black, also by those who see no red.
const COLOURS: [&str; 10] = [
    "#d1495b", "#3b7dd8", "#7fb0ee", "#2a9d6f", "#85cfae", "#b07d2b", "#dfb86a", "#8c5fbf", "#8a8f98",
    "#17becf",
];

/// The plot as SVG. Its text and lines have the colour that suits a light or a dark page.
pub(crate) fn svg(samples: &[Sample]) -> String {
    let (workloads, mut kinds) = rows_and_columns(samples);
    kinds.retain(|kind| *kind != Kind::Limit);
    let group = kinds.len() as f64 * BAR + GAP;
    let bottom = TOP + HEIGHT;
    let width = (LEFT + workloads.len() as f64 * group).max(LEFT + LEGEND_COLUMNS as f64 * LEGEND) + 10.0;
    let legend_lines = kinds.len().div_ceil(LEGEND_COLUMNS) as f64;
    let height = bottom + 34.0 + legend_lines * LEGEND_HEIGHT;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" role=\"img\" aria-label=\"Ratio to the limit by workload and engine\">\n<style>\n\
         text {{ font: 11px sans-serif; fill: #333 }} line {{ stroke: #999; stroke-width: 0.5 }}\n\
         .limit {{ stroke: #333; stroke-width: 1 }} .n {{ font-size: 8px; text-anchor: middle }} .w {{ text-anchor: middle }}\n\
         @media (prefers-color-scheme: dark) {{ text {{ fill: #ddd }} line {{ stroke: #777 }} .limit {{ stroke: #ddd }} }}\n\
         </style>\n<text x=\"{LEFT}\" y=\"18\">Ratio to the limit, the least a durable log has to do; higher is better</text>\n"
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
    for (nth, kind) in kinds.iter().enumerate() {
        let x = LEFT + (nth % LEGEND_COLUMNS) as f64 * LEGEND;
        let y = bottom + 28.0 + (nth / LEGEND_COLUMNS) as f64 * LEGEND_HEIGHT;
        let _ = writeln!(
            text,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"10\" height=\"10\" fill=\"{}\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            colour(*kind),
            x + 14.0,
            y + 9.0,
            kind.word()
        );
    }
    text.push_str("</svg>\n");
    text
}

fn colour(kind: Kind) -> &'static str {
    COLOURS[(kind as usize).saturating_sub(1) % COLOURS.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::tests::sample;
    use crate::workload::Workload;

    #[test]
    fn no_two_engines_have_one_colour() {
        use clap::ValueEnum;
        let kinds = Kind::value_variants().iter().filter(|kind| **kind != Kind::Limit);
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
}
