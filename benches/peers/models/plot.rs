//! The plot of the models, as SVG.

use std::path::Path;

use plotters::coord::ranged1d::SegmentValue;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{Figures, Model, probe};
use crate::common::failure::{Context, Result};

const SIZE: (u32, u32) = (960, 640);
const FONT: &str = "sans-serif";

/// The greatest wait that is drawn, in ms: that of clients that are not served.
const NOT_SERVED: f64 = 1000.0;

/// The title of a chart, and its value of a model.
type Chart = (&'static str, fn(&Figures) -> f64);

/// Draws four charts, with a bar for each model.
pub(super) fn draw(figures: &[Figures], file: &Path) -> Result<()> {
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    let context = || format!("cannot draw {}", file.display());
    area.fill(&WHITE).context(context())?;
    let charts: [Chart; 4] = [
        ("CPU time of a connection, us", |figures| {
            figures.micros.median
        }),
        (
            "longest wait with 4 slow clients, ms (not served: 1000)",
            |figures| figures.waits[1].unwrap_or(NOT_SERVED),
        ),
        (
            "most connections of a worker / mean (64 that stay)",
            |figures| figures.shares[0],
        ),
        (
            "connections of 64 that end with a killed worker",
            |figures| figures.lost.unwrap_or(probe::LONG) as f64,
        ),
    ];
    for (part, (title, value)) in area.split_evenly((2, 2)).iter().zip(charts) {
        let most = figures.iter().map(value).fold(1.0, f64::max);
        // The first model is at the top.
        let models: Vec<Model> = figures.iter().rev().map(|figures| figures.model).collect();
        let rows = 0..(models.len() as u32).saturating_sub(1);
        let mut chart = ChartBuilder::on(part)
            .caption(title, (FONT, 15))
            .margin(12)
            .x_label_area_size(24)
            .y_label_area_size(150)
            .build_cartesian_2d(0.0..most * 1.15, rows.into_segmented())
            .context(context())?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .x_labels(6)
            .max_light_lines(1)
            .y_label_formatter(&|row| match row {
                SegmentValue::CenterOf(row) => models
                    .get(*row as usize)
                    .map_or_else(String::new, |model| model.title().to_owned()),
                _ => String::new(),
            })
            .label_style((FONT, 13))
            .draw()
            .context(context())?;
        let bars = (0..).zip(figures.iter().rev()).map(|(row, figures)| {
            let color = match figures.model {
                Model::RoundRobin | Model::LeastLoaded => RGBColor(0xd9, 0x5f, 0x02),
                _ => RGBColor(0x75, 0x70, 0xb3),
            };
            let (from, to) = (SegmentValue::Exact(row), SegmentValue::Exact(row + 1));
            let mut bar = Rectangle::new([(0.0, from), (value(figures), to)], color.filled());
            bar.set_margin(4, 4, 0, 0);
            bar
        });
        chart.draw_series(bars).context(context())?;
        let style = TextStyle::from((FONT, 13)).pos(Pos::new(HPos::Left, VPos::Center));
        let labels = (0..).zip(figures.iter().rev()).map(|(row, figures)| {
            let digits = if value(figures).fract() == 0.0 { 0 } else { 1 };
            let text = format!(" {:.digits$}", value(figures));
            Text::new(
                text,
                (value(figures), SegmentValue::CenterOf(row)),
                style.clone(),
            )
        });
        chart.draw_series(labels).context(context())?;
    }
    area.present().context(context())
}
