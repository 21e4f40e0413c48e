package fdpassd

import (
	"context"
	"encoding/json"
	"sync"
	"time"
)

// A Call describes a request.
type Call struct {
	id     uint64
	client uint64
	// Parts of the bytes that are kept.
	peerText []byte
	viaText  []byte
	hasVia   bool
	attempt  int
	method   *method
	params   []byte
	unix     *Unix
}

// Unix is the process at the other end of a Unix socket, when it connected.
type Unix struct{ PID, UID, GID int }

// Client returns the number of the client. Two connections never have the same number.
func (c *Call) Client() uint64 { return c.client }

// Peer returns the address of a TCP client; it may be empty for a client of a Unix socket.
func (c *Call) Peer() string { return string(c.peerText) }

// Via returns the address of the load balancer that has reported Peer by the PROXY protocol, which is empty if the
// balancer uses a Unix socket; ok is false for a client without one.
func (c *Call) Via() (address string, ok bool) { return string(c.viaText), c.hasVia }

// Unix returns the process of a client of a Unix socket; ok is false for other clients.
func (c *Call) Unix() (process Unix, ok bool) {
	if c.unix == nil {
		return Unix{}, false
	}
	return *c.unix, true
}

// Attempt returns 1; or 2 if a process died in an idempotent method and the request runs once more.
func (c *Call) Attempt() int { return c.attempt }

// Method returns the name of the method.
func (c *Call) Method() string {
	if c.method == nil {
		return ""
	}
	return c.method.Name
}

// RawParams returns the params as the client wrote them, or nil if it sent none.
func (c *Call) RawParams() json.RawMessage { return c.params }

// CallOf returns the call of a method's context. For any other context the call is empty.
func CallOf(ctx context.Context) *Call {
	if c, ok := ctx.Value(callKey{}).(*Call); ok {
		return c
	}
	return &Call{attempt: 1}
}

type callKey struct{}

// The context of a call. Most methods never wait for its end, so the parts that this needs are made at first use.
type callContext struct {
	Call
	deadline    time.Time
	hasDeadline bool

	mu sync.Mutex
	// The standard library's contexts look for one of their own by Value, and then need no goroutine each.
	inner  context.Context
	cancel context.CancelFunc
	err    error
}

func (c *callContext) Deadline() (time.Time, bool) { return c.deadline, c.hasDeadline }

func (c *callContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inner == nil {
		if c.hasDeadline {
			c.inner, c.cancel = context.WithDeadline(context.Background(), c.deadline)
		} else {
			c.inner, c.cancel = context.WithCancel(context.Background())
		}
		if c.err != nil {
			c.cancel()
		}
	}
	return c.inner.Done()
}

func (c *callContext) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		if c.inner != nil {
			c.err = c.inner.Err()
		} else if c.hasDeadline && !time.Now().Before(c.deadline) {
			c.err = context.DeadlineExceeded
		}
	}
	return c.err
}

func (c *callContext) Value(key any) any {
	if key == (callKey{}) {
		return &c.Call
	}
	c.mu.Lock()
	inner := c.inner
	c.mu.Unlock()
	if inner == nil {
		return nil
	}
	return inner.Value(key)
}

// Ends the context. A call that is not answered yet will have its answer discarded.
func (c *callContext) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		if c.inner != nil {
			c.err = c.inner.Err()
		}
		if c.err == nil {
			c.err = err
		}
	}
	if c.cancel != nil {
		c.cancel()
	}
}
