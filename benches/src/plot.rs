//! SVG plots: how cost grows with size, subscribers, connections, topics, threads, requests in flight.
//!
//! One picture for each kind of traffic and transport of which at least two cells were measured; a line for
//! each contestant through its medians, both axes logarithmic. Owns: pictures. Never: numbers of its own.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use plotters::prelude::*;

use crate::cell::{Cell, Metric, Shape};
use crate::report::Summary;
use crate::rounds::Outcome;
use crate::{Result, cell};

/// One contestant's points.
type Line = (String, Vec<(f64, f64)>);

/// Draws what there is to draw, and tells the files.
///
/// # Errors
/// When a file cannot be written.
pub fn all(dir: &Path, stem: &str, outcomes: &[Outcome]) -> Result<Vec<PathBuf>> {
    let mut kinds: BTreeMap<String, Vec<&Outcome>> = BTreeMap::new();
    for outcome in outcomes {
        kinds.entry(kind(&outcome.cell)).or_default().push(outcome);
    }
    let mut files = Vec::new();
    for (kind, outcomes) in kinds {
        let mut values: Vec<f64> = outcomes.iter().map(|o| along(&o.cell)).collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        if values.len() < 2 {
            continue;
        }
        for metric in plotted(&outcomes[0].cell.shape) {
            let lines = lines(&outcomes, metric);
            if lines.is_empty() {
                continue;
            }
            let path = dir.join(format!("{stem}-{}-{}.svg", kind.replace(' ', "-"), metric.name));
            draw(&path, &kind, &outcomes[0].cell, metric, &lines)
                .map_err(|why| format!("cannot draw {}: {why}", path.display()))?;
            files.push(path);
        }
    }
    Ok(files)
}

/// Cells of one picture.
fn kind(cell: &Cell) -> String {
    match cell.shape.family() {
        (name, None) => format!("{name} {}", cell.transport),
        (name, Some(_)) => format!("{name} {} {}", cell.transport, cell::size(cell.size)),
    }
}

/// Where a cell stands on the horizontal axis.
fn along(cell: &Cell) -> f64 {
    cell.shape.family().1.unwrap_or(cell.size) as f64
}

/// What is worth a picture.
fn plotted(shape: &Shape) -> impl Iterator<Item = &'static Metric> {
    let names: &[&str] = match shape {
        Shape::RoundTrip => &["p50", "p99"],
        Shape::FanIn(_) => &["rate", "cpu", "connect", "rss"],
        Shape::Idle(_) | Shape::Full => &[],
        _ => &["rate", "cpu"],
    };
    let shape = *shape;
    names.iter().filter_map(move |name| shape.metric(name))
}

fn lines(outcomes: &[&Outcome], metric: &Metric) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for outcome in outcomes {
        for row in &outcome.rows {
            let Some(summary) = Summary::of_name(outcome, &row.name, metric) else { continue };
            // A logarithm has no zero.
            if summary.median <= 0.0 {
                continue;
            }
            let point = (along(&outcome.cell), summary.median);
            match lines.iter_mut().find(|(name, _)| *name == row.name) {
                Some((_, points)) => points.push(point),
                None => lines.push((row.name.clone(), vec![point])),
            }
        }
    }
    for (_, points) in &mut lines {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    lines
}

fn draw(
    path: &Path,
    kind: &str,
    cell: &Cell,
    metric: &Metric,
    lines: &[Line],
) -> std::result::Result<(), Box<dyn Error>> {
    let points = || lines.iter().flat_map(|(_, points)| points);
    let range = |of: fn(&(f64, f64)) -> f64, room: f64| {
        let low = points().map(of).fold(f64::INFINITY, f64::min);
        let high = points().map(of).fold(f64::NEG_INFINITY, f64::max);
        low / room..high * room
    };
    let root = SVGBackend::new(path, (860, 520)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(format!("{kind}: {}", metric.heading), ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .right_y_label_area_size(130)
        .build_cartesian_2d(range(|p| p.0, 1.1).log_scale(), range(|p| p.1, 1.3).log_scale())?;
    let axis = match metric.more_is_better {
        true => format!("{} (more is better)", metric.heading),
        false => format!("{} (less is better)", metric.heading),
    };
    chart.configure_mesh().x_desc(cell.shape.unit()).y_desc(axis).light_line_style(WHITE).draw()?;
    for (i, (name, points)) in lines.iter().enumerate() {
        let color = Palette99::pick(i).to_rgba();
        let style = ShapeStyle { color, filled: true, stroke_width: if i == 0 { 3 } else { 1 } };
        chart
            .draw_series(LineSeries::new(points.iter().copied(), style).point_size(3))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::Coordinate(715, 10))
        .background_style(WHITE)
        .draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Transport;
    use crate::rounds::Row;
    use crate::side::Numbers;

    fn outcome(shape: Shape, size: usize, rate: f64) -> Outcome {
        let numbers = Numbers::parse(&format!("rate={rate} cpu=0.5")).unwrap();
        let row = Row { name: "spanwire".to_owned(), samples: vec![Some(numbers)], ..Row::default() };
        let cell = Cell { shape, transport: Transport::Tcp, size };
        Outcome { cell, rows: vec![row], spent: Vec::new(), discarded: 0 }
    }

    #[test]
    fn a_line_needs_two_cells_of_a_kind_and_names_who_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let alone = [outcome(Shape::Stream, 64, 1.0), outcome(Shape::FanOut(8), 64, 1.0)];
        assert!(all(dir.path(), "now", &alone).unwrap().is_empty());
        let two = [outcome(Shape::FanOut(8), 64, 1.0), outcome(Shape::FanOut(64), 64, 9.0)];
        let files = all(dir.path(), "now", &two).unwrap();
        assert_eq!(files.len(), 2, "one for the rate, one for CPU");
        let svg = std::fs::read_to_string(&files[0]).unwrap();
        assert!(svg.contains("spanwire") && svg.contains("subscribers"), "{svg}");
    }
}
