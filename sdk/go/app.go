package fdpassd

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"
)

const (
	maxConcurrency = 4096
	// How long the functions of Stop may run if the worker has ended without a stop.
	endGrace = time.Second
	// How long other calls may run after a panic.
	panicGrace = 10 * time.Second
)

// Exit codes: of sysexits.h, and that of Go for a panic.
const (
	exitFailed   = 1
	exitPanic    = 2
	exitUsage    = 64
	exitProtocol = 76
)

// An App is a set of methods, and what belongs to them.
type App struct {
	hello    hello
	methods  map[string]*method
	mistakes []string
	onStart  []func(context.Context) error
	onStop   []func(context.Context) error
	onClose  []func(client uint64)
	checks   []check

	isRunning bool
	worker    *os.File

	mu         sync.Mutex
	hasGreeted bool
	calls      map[uint64]*callContext
	// Frames to be written. One goroutine at a time writes them.
	out       []byte
	spare     []byte
	isWriting bool
	// Signalled when a call is answered and when everything is written.
	progress *sync.Cond
	health   string

	hasMetrics bool
	metricsDue bool

	// A method has panicked.
	isDying   bool
	ending    sync.Once
	stopsBy   time.Time
	hasToStop bool
}

type hello struct {
	Hello       int       `json:"hello"`
	Methods     []*method `json:"methods"`
	Concurrency int       `json:"concurrency"`
	Name        string    `json:"name,omitempty"`
	Version     string    `json:"version,omitempty"`
	Closes      bool      `json:"closes"`
	Metrics     []*metric `json:"metrics,omitempty"`
}

type check struct {
	every time.Duration
	call  func(context.Context) error
}

// An Option is Concurrency, Name or Version.
type Option func(*App)

// Concurrency sets how many requests the process has at a time, from 1 to 4096. The default is 64.
func Concurrency(limit int) Option {
	return func(a *App) {
		a.hello.Concurrency = limit
		if limit < 1 || limit > maxConcurrency {
			a.mistake("the concurrency must be from 1 to %d, not %d", maxConcurrency, limit)
		}
	}
}

// Name sets the name that operators see.
func Name(name string) Option { return func(a *App) { a.hello.Name = name } }

// Version sets the version that operators see.
func Version(version string) Option { return func(a *App) { a.hello.Version = version } }

// New returns an app without methods. Mistakes in what is added to it are reported by Run.
func New(options ...Option) *App {
	a := &App{
		hello:   hello{Hello: 1, Methods: []*method{}, Concurrency: 64},
		methods: map[string]*method{},
		calls:   map[uint64]*callContext{},
	}
	a.progress = sync.NewCond(&a.mu)
	for _, option := range options {
		option(a)
	}
	return a
}

// Start adds a function that runs before the app serves. If it returns an error, the app does not start.
func (a *App) Start(call func(context.Context) error) {
	a.mustNotRun()
	a.onStart = append(a.onStart, call)
}

// Stop adds a function that runs after the last answer. Its context ends when the worker no longer waits.
func (a *App) Stop(call func(context.Context) error) {
	a.mustNotRun()
	a.onStop = append(a.onStop, call)
}

// OnClose adds a function that runs when a client has left that has called a method of this process.
func (a *App) OnClose(call func(client uint64)) {
	a.mustNotRun()
	a.onClose = append(a.onClose, call)
	a.hello.Closes = true
}

// Health adds a function that is called at the start and then again and again, with this time between two calls. An
// error is the reason why the app is unhealthy.
func (a *App) Health(every time.Duration, call func(context.Context) error) {
	a.mustNotRun()
	if every <= 0 {
		a.mistake("the time between two checks of health must be positive, not %v", every)
	}
	a.checks = append(a.checks, check{every, call})
}

// Healthy reports that the app can work. It is healthy at first.
func (a *App) Healthy() { a.setHealth("") }

// Unhealthy reports that the app cannot work, and why, for the operator. An unhealthy app gets clients only if no healthy
// one has capacity; if all are unhealthy, /readyz is 503.
func (a *App) Unhealthy(reason string) {
	if reason == "" {
		reason = "unhealthy"
	}
	a.setHealth(cut(reason))
}

func (a *App) setHealth(health string) {
	a.mu.Lock()
	if health == a.health || a.isDying {
		a.mu.Unlock()
		return
	}
	a.health = health
	if !a.hasGreeted {
		a.mu.Unlock()
		return
	}
	a.appendHealth()
	a.flush()
}

func (a *App) appendHealth() {
	if a.health == "" {
		a.append(map[string]any{"health": nil})
	} else if !a.append(map[string]any{"health": a.health}) {
		// A text that is cut may be too long as JSON, in which a control character has six bytes.
		a.append(map[string]any{"health": "unhealthy"})
	}
}

func (a *App) mustNotRun() {
	if a.isRunning {
		panic("fdpassd: the app is running already")
	}
}

func (a *App) mistake(format string, arguments ...any) {
	a.mistakes = append(a.mistakes, fmt.Sprintf(format, arguments...))
}

// Run serves, and never returns: the process exits when the worker closes the descriptor. If the daemon has not started
// this process, Run prints how to start it and exits with status 64.
func (a *App) Run() {
	a.mustNotRun()
	if descriptor < 0 {
		for _, mistake := range a.mistakes {
			fmt.Fprintln(os.Stderr, mistake)
		}
		fmt.Fprintf(os.Stderr, "start this app with: fdpassd app -- %s\n", ownCommand())
		os.Exit(exitUsage)
	}
	if !isSocket(descriptor) {
		fmt.Fprintf(os.Stderr, "descriptor %d, which FDPASSD_APP names, is not a socket\n", descriptor)
		os.Exit(exitUsage)
	}
	a.isRunning = true
	// The file is kept: a file that is not would be closed by the garbage collector. Only of a non-blocking descriptor
	// the runtime waits without a thread.
	_ = syscall.SetNonblock(descriptor, true)
	a.worker = os.NewFile(uintptr(descriptor), "worker")
	a.greet()
	a.serve()
}

func (a *App) greet() {
	if len(a.mistakes) > 0 {
		a.fail(a.mistakes[0], "")
	}
	for _, call := range a.onStart {
		if err := protect(context.Background(), call); err != nil {
			stack := ""
			if p, ok := err.(*panicError); ok {
				stack = "\n" + p.stack
			}
			a.fail(fmt.Sprintf("%s: %v", typeName(err), err), stack)
		}
	}
	a.mu.Lock()
	if !a.append(a.hello) {
		a.mu.Unlock()
		a.fail("the list of methods is longer than a frame may be", "")
	}
	a.hasGreeted = true
	if a.health != "" {
		a.appendHealth()
	}
	a.flush()
	for _, c := range a.checks {
		go a.check(c)
	}
}

// Reports that the app will not serve.
func (a *App) fail(reason, stack string) {
	logError("the app cannot start: %s%s", reason, stack)
	a.mu.Lock()
	if !a.append(map[string]any{"failed": cut(reason)}) {
		// As for health: the log has the reason.
		a.append(map[string]any{"failed": "the app cannot start; its log has the reason"})
	}
	a.flush()
	os.Exit(exitFailed)
}

func (a *App) check(c check) {
	for {
		if err := protect(context.Background(), c.call); err != nil {
			a.Unhealthy(err.Error())
		} else {
			a.Healthy()
		}
		time.Sleep(c.every)
	}
}

type panicError struct {
	value any
	stack string
}

func (p *panicError) Error() string { return fmt.Sprint(p.value) }

// Calls a function, and returns a panic as an error.
func protect(ctx context.Context, call func(context.Context) error) (err error) {
	defer func() {
		if value := recover(); value != nil {
			err = &panicError{value, string(debug.Stack())}
		}
	}()
	return call(ctx)
}

// Appends a frame, and returns false if it is too long. The caller holds the lock.
func (a *App) append(object any) bool {
	body, err := json.Marshal(object)
	if err != nil {
		panic(err) // All objects are the package's own.
	}
	if len(body) > maxFrame {
		return false
	}
	a.out = append(a.out, 0, 0, 0, 0)
	binary.LittleEndian.PutUint32(a.out[len(a.out)-4:], uint32(len(body)))
	a.out = append(a.out, body...)
	return true
}

// Writes all unwritten bytes, unless another goroutine does. The caller holds the lock, and loses it.
func (a *App) flush() {
	if a.isWriting {
		a.mu.Unlock()
		return
	}
	a.isWriting = true
	if len(a.calls) > 0 {
		// Other calls may be about to end: their answers go into the same write.
		a.mu.Unlock()
		runtime.Gosched()
		a.mu.Lock()
	}
	for {
		if a.hasMetrics && a.hasGreeted {
			a.takeMetrics()
		}
		if len(a.out) == 0 {
			break
		}
		frames := a.out
		a.out = a.spare[:0]
		a.spare = nil
		a.mu.Unlock()
		// Without a reader the end of the descriptor will be read.
		_, _ = a.worker.Write(frames)
		a.mu.Lock()
		if cap(frames) <= 16*keptBuffer {
			a.spare = frames
		}
	}
	a.isWriting = false
	a.progress.Broadcast()
	a.mu.Unlock()
}
