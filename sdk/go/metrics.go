package fdpassd

import (
	"fmt"
	"math"
	"time"
)

// The upper bounds of a histogram's buckets if it has none of its own; they suit seconds.
var defaultBuckets = []float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}

const (
	// Larger whole numbers are not exact.
	maxCount = 1 << 53
	// A frame must not exceed the limit of the worker.
	maxObservations = 256
	// Changes are sent after this time if no answer is written.
	metricsDelay = 100 * time.Millisecond
)

// A metric, as hello lists it.
type metric struct {
	Name    string    `json:"name"`
	Type    string    `json:"type"`
	Help    string    `json:"help,omitempty"`
	Buckets []float64 `json:"buckets,omitempty"`

	app *App
	// The additions since the last frame.
	sum    float64
	values []float64
}

// A Counter is a metric of the daemon that only grows.
type Counter struct{ metric }

// A Histogram is a metric of the daemon that shows how values are distributed.
type Histogram struct{ metric }

// Counter adds a counter, which must be done before Run. The name is [a-z][a-z0-9_]{0,63}.
func (a *App) Counter(name, help string) *Counter {
	c := &Counter{metric{Name: name, Type: "counter", Help: help, app: a}}
	a.addMetric(&c.metric)
	return c
}

// Histogram adds a histogram, which must be done before Run. Buckets are ascending upper bounds; the default suits
// seconds.
func (a *App) Histogram(name, help string, buckets ...float64) *Histogram {
	if len(buckets) == 0 {
		buckets = defaultBuckets
	}
	for i, bound := range buckets {
		if math.IsNaN(bound) || math.IsInf(bound, 0) || i > 0 && bound <= buckets[i-1] {
			a.mistake("the bounds of the buckets of %q must be finite and ascending", name)
			break
		}
	}
	h := &Histogram{metric{Name: name, Type: "histogram", Help: help, Buckets: buckets, app: a}}
	a.addMetric(&h.metric)
	return h
}

func (a *App) addMetric(m *metric) {
	a.mustNotRun()
	if !isName(m.Name, "_", 64) {
		a.mistake("%q is not a valid name of a metric: [a-z][a-z0-9_]{0,63}", m.Name)
	}
	for _, other := range a.hello.Metrics {
		if other.Name == m.Name {
			a.mistake("duplicate metric %q", m.Name)
		}
	}
	a.hello.Metrics = append(a.hello.Metrics, m)
}

// Inc adds one.
func (c *Counter) Inc() { _ = c.Add(1) }

// Add adds a whole number from 0 to 2^53. Any other changes nothing, and is an error.
func (c *Counter) Add(count float64) error {
	if !(count >= 0 && count <= maxCount && count == math.Trunc(count)) {
		return fmt.Errorf("a counter cannot grow by %v, only by a whole number up to 2^53", count)
	}
	c.app.mu.Lock()
	defer c.app.mu.Unlock()
	c.sum += count
	c.app.metricChanged()
	return nil
}

// Observe adds a value. One that is not finite changes nothing, and is an error.
func (h *Histogram) Observe(value float64) error {
	if math.IsNaN(value) || math.IsInf(value, 0) {
		return fmt.Errorf("a histogram cannot observe %v, only finite numbers", value)
	}
	h.app.mu.Lock()
	defer h.app.mu.Unlock()
	h.values = append(h.values, value)
	h.app.metricChanged()
	return nil
}

// The next answers carry what has changed; if there are none, a timer does. It is not set while nothing changes.
func (a *App) metricChanged() {
	a.hasMetrics = true
	if a.hasGreeted && !a.metricsDue {
		a.metricsDue = true
		time.AfterFunc(metricsDelay, func() {
			a.mu.Lock()
			a.metricsDue = false
			a.flush()
		})
	}
}

// Appends frames with what has changed.
func (a *App) takeMetrics() {
	a.hasMetrics = false
	var added []addition
	for _, m := range a.hello.Metrics {
		values := m.values
		for len(values) > maxObservations {
			a.appendMetrics([]addition{{name: m.Name, values: values[:maxObservations]}})
			values = values[maxObservations:]
		}
		if len(values) > 0 || m.sum > 0 {
			added = append(added, addition{m.Name, math.Min(m.sum, maxCount), values})
		}
	}
	if len(added) > 0 {
		a.appendMetrics(added)
	}
	for _, m := range a.hello.Metrics {
		m.sum, m.values = 0, m.values[:0]
	}
}

// An addition to a metric: to a histogram if there are values.
type addition struct {
	name   string
	sum    float64
	values []float64
}

// Appends these additions, in several frames if one would be too long.
func (a *App) appendMetrics(added []addition) {
	members := map[string]any{}
	for _, one := range added {
		if len(one.values) > 0 {
			members[one.name] = one.values
		} else {
			members[one.name] = one.sum
		}
	}
	if a.append(map[string]any{"metrics": members}) {
		return
	}
	if half := len(added) / 2; half > 0 {
		a.appendMetrics(added[:half])
		a.appendMetrics(added[half:])
	} else if half := len(added[0].values) / 2; half > 0 {
		a.appendMetrics([]addition{{name: added[0].name, values: added[0].values[:half]}})
		a.appendMetrics([]addition{{name: added[0].name, values: added[0].values[half:]}})
	}
}
