package fdpassd

// The worker's side of the protocol, for tests.

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"sync"
	"syscall"
	"testing"
	"time"
)

const deadline = 20 * time.Second

// The tests start this program itself, as an app.
func TestMain(m *testing.M) {
	if name, isApp := os.LookupEnv("TEST_APP"); isApp {
		os.Unsetenv("TEST_APP")
		apps[name]()
		os.Exit(99)
	}
	os.Exit(m.Run())
}

type testWorker struct {
	t      *testing.T
	cmd    *exec.Cmd
	socket *os.File
	ids    uint64
	ended  chan struct{}

	mu     sync.Mutex
	change *sync.Cond
	frames []string
	reads  int
	stderr bytes.Buffer
	isEnd  bool
}

type options struct {
	env []string
	// Instead of the test program.
	command []string
	// Frames are not read before the test calls read.
	unread bool
	// Prepares the app's end of the socket pair.
	prepare func(fd int)
	stderr  *os.File
}

func startApp(t *testing.T, name string, o options) *testWorker {
	t.Helper()
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	must(t, err)
	if o.prepare != nil {
		o.prepare(pair[1])
	}
	must(t, syscall.SetNonblock(pair[0], true))
	w := &testWorker{t: t, socket: os.NewFile(uintptr(pair[0]), "app"), ended: make(chan struct{})}
	w.change = sync.NewCond(&w.mu)
	if o.command == nil {
		o.command = []string{os.Args[0]}
	}
	w.cmd = exec.Command(o.command[0], o.command[1:]...)
	w.cmd.Env = append(os.Environ(), "TEST_APP="+name, "FDPASSD_APP=3", "FDPASSD_MAX_FRAME=1049600")
	w.cmd.Env = append(w.cmd.Env, o.env...)
	other := os.NewFile(uintptr(pair[1]), "worker")
	w.cmd.ExtraFiles = []*os.File{other}
	stderr, stderrEnd, err := os.Pipe()
	must(t, err)
	w.cmd.Stderr = stderrEnd
	if o.stderr != nil {
		w.cmd.Stderr = o.stderr
		w.cmd.Stdout = o.stderr
	}
	must(t, w.cmd.Start())
	other.Close()
	stderrEnd.Close()
	logged := make(chan struct{})
	go func() {
		buffer := make([]byte, 65536)
		for {
			n, err := stderr.Read(buffer)
			if err != nil {
				break
			}
			w.mu.Lock()
			w.stderr.Write(buffer[:n])
			w.change.Broadcast()
			w.mu.Unlock()
		}
		stderr.Close()
		close(logged)
	}()
	go func() {
		w.cmd.Wait()
		<-logged
		close(w.ended)
	}()
	if !o.unread {
		go w.read()
	}
	t.Cleanup(func() {
		w.cmd.Process.Kill()
		<-w.ended
		w.socket.Close()
	})
	return w
}

func (w *testWorker) read() {
	var rest []byte
	buffer := make([]byte, 4<<20)
	for {
		n, err := w.socket.Read(buffer)
		w.mu.Lock()
		if err != nil {
			w.isEnd = true
			w.change.Broadcast()
			w.mu.Unlock()
			return
		}
		w.reads++
		rest = append(rest, buffer[:n]...)
		for len(rest) >= 4 {
			length := int(binary.LittleEndian.Uint32(rest))
			if len(rest)-4 < length {
				break
			}
			w.frames = append(w.frames, string(rest[4:4+length]))
			rest = rest[4+length:]
		}
		w.change.Broadcast()
		w.mu.Unlock()
	}
}

type frame struct {
	text string

	Hello       int
	Methods     []map[string]any
	Metrics     json.RawMessage
	Concurrency int
	Name        string
	Version     string
	Closes      bool
	Failed      *string
	ID          uint64
	Result      json.RawMessage
	Error       *struct{ Code, Message string }
	Alive       uint64
	Health      json.RawMessage
}

// Waits until the condition holds.
func (w *testWorker) wait(what string, is func() bool) {
	w.t.Helper()
	late := time.AfterFunc(deadline, w.change.Broadcast)
	defer late.Stop()
	end := time.Now().Add(deadline)
	w.mu.Lock()
	defer w.mu.Unlock()
	for !is() {
		if w.isEnd || !time.Now().Before(end) {
			w.mu.Unlock()
			time.Sleep(200 * time.Millisecond) // for the log
			w.mu.Lock()
			if is() {
				return
			}
			w.t.Fatalf("no %s; log: %s", what, w.stderr.String())
		}
		w.change.Wait()
	}
}

// Takes the first frame for which this holds.
func (w *testWorker) next(what string, is func(*frame) bool) *frame {
	w.t.Helper()
	var found *frame
	w.wait(what, func() bool {
		for i, text := range w.frames {
			f := &frame{text: text}
			if err := json.Unmarshal([]byte(text), f); err != nil {
				w.t.Errorf("%s: %v", text, err)
			}
			if is(f) {
				w.frames = append(w.frames[:i:i], w.frames[i+1:]...)
				found = f
				return true
			}
		}
		return false
	})
	return found
}

func serving(t *testing.T, name string, o options) *testWorker {
	t.Helper()
	w := startApp(t, name, o)
	w.hello()
	return w
}

func (w *testWorker) hello() *frame {
	w.t.Helper()
	return w.next("hello", func(f *frame) bool { return f.Hello == 1 })
}

func frameOf(body string) []byte {
	length := make([]byte, 4)
	binary.LittleEndian.PutUint32(length, uint32(len(body)))
	return append(length, body...)
}

func (w *testWorker) send(bodies ...string) {
	w.t.Helper()
	var all []byte
	for _, body := range bodies {
		all = append(all, frameOf(body)...)
	}
	_, err := w.socket.Write(all)
	must(w.t, err)
}

// Returns a request; without params they are missing.
func (w *testWorker) body(method, params string) (id uint64, body string) {
	w.ids++
	head := fmt.Sprintf(`{"id":%d,"in":%q,"client":4711,"peer":"10.0.0.9:4242","attempt":1,"timeout":30000`, w.ids, method)
	if params != "" {
		head += `,"params":` + params
	}
	return w.ids, head + "}"
}

func (w *testWorker) answer(id uint64) *frame {
	w.t.Helper()
	return w.next(fmt.Sprintf("answer %d", id), func(f *frame) bool { return f.ID == id })
}

func (w *testWorker) call(method, params string) *frame {
	w.t.Helper()
	id, body := w.body(method, params)
	w.send(body)
	return w.answer(id)
}

func (w *testWorker) result(method, params string) string {
	w.t.Helper()
	f := w.call(method, params)
	if f.Error != nil {
		w.t.Fatalf("%s: %+v", method, *f.Error)
	}
	return string(f.Result)
}

func (w *testWorker) fault(method, params string) string {
	w.t.Helper()
	f := w.call(method, params)
	if f.Error == nil {
		w.t.Fatalf("%s: %s", method, f.text)
	}
	return f.Error.Code + ": " + f.Error.Message
}

func (w *testWorker) exit() int {
	w.t.Helper()
	select {
	case <-w.ended:
		return w.cmd.ProcessState.ExitCode()
	case <-time.After(deadline):
		w.t.Fatalf("no exit; log: %s", w.log())
		return -1
	}
}

// Ends the connection, and checks that the app exits with 0.
func (w *testWorker) end() {
	w.t.Helper()
	must(w.t, w.socket.Close())
	equal(w.t, w.exit(), 0)
}

func (w *testWorker) log() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stderr.String()
}

func (w *testWorker) logged(pattern string) {
	w.t.Helper()
	expression := regexp.MustCompile(pattern)
	end := time.Now().Add(deadline)
	for !expression.MatchString(w.log()) {
		if time.Now().After(end) {
			w.t.Fatalf("no %s in the log: %s", pattern, w.log())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil && err != io.EOF {
		t.Fatal(err)
	}
}

func equal[T comparable](t *testing.T, got, want T) {
	t.Helper()
	if got != want {
		t.Fatalf("got %v, want %v", got, want)
	}
}
