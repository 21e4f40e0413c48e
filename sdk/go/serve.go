package fdpassd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime/debug"
	"strconv"
	"time"
)

// Reads frames until the worker closes the descriptor.
func (a *App) serve() {
	in := reader{buffer: make([]byte, keptBuffer)}
	var m message
	for {
		frame, err := in.next(a.worker)
		if err != nil {
			break
		}
		if err := m.parse(frame); err != nil {
			logError("the worker sent a frame that cannot be read: %v", err)
			os.Exit(exitProtocol)
		}
		a.receive(&m, in.arrived)
	}
	a.mu.Lock()
	if a.isDying {
		os.Exit(exitPanic)
	}
	deadline := a.stopsBy
	if !a.hasToStop {
		deadline = time.Now().Add(endGrace)
	}
	a.mu.Unlock()
	a.finish(deadline)
	select {}
}

func (a *App) receive(m *message, arrived time.Time) {
	a.mu.Lock()
	isDying := a.isDying
	a.mu.Unlock()
	if isDying && m.kind != isCancel {
		return // After the end of the process, idempotent requests run elsewhere.
	}
	switch m.kind {
	case isRequest:
		a.request(m, arrived)
	case isCancel:
		a.mu.Lock()
		call := a.calls[m.number]
		a.mu.Unlock()
		if call != nil {
			if string(m.why) == "timeout" {
				call.end(context.DeadlineExceeded)
			} else {
				call.end(context.Canceled)
			}
		}
	case isProbe:
		a.mu.Lock()
		a.append(map[string]any{"alive": m.number})
		a.flush()
	case isClosed:
		for _, call := range a.onClose {
			go call(m.number)
		}
	case isStop:
		a.mu.Lock()
		a.hasToStop = true
		a.stopsBy = time.Now().Add(milliseconds(m.number))
		isIdle := len(a.calls) == 0
		a.mu.Unlock()
		if isIdle {
			a.finish(a.stopsBy)
		}
	}
}

func milliseconds(count uint64) time.Duration {
	const most = math.MaxInt64 / uint64(time.Millisecond) / 2
	if count > most {
		count = most
	}
	return time.Duration(count) * time.Millisecond
}

func (a *App) request(m *message, arrived time.Time) {
	// The buffer of the frame is used again.
	peerAt := len(m.params)
	viaAt := peerAt + len(m.peer)
	kept := make([]byte, viaAt+len(m.via))
	copy(kept, m.params)
	copy(kept[peerAt:], m.peer)
	copy(kept[viaAt:], m.via)
	c := &callContext{Call: Call{id: m.number, client: m.client, attempt: int(m.attempt), method: a.methods[string(m.method)]}}
	if m.params != nil {
		c.params = kept[:peerAt:peerAt]
	}
	c.peerText = kept[peerAt:viaAt]
	c.viaText, c.hasVia = kept[viaAt:], m.hasVia
	if m.isUnix {
		c.unix = &Unix{int(m.pid), int(m.uid), int(m.gid)}
	}
	if m.hasTimeout {
		c.hasDeadline = true
		c.deadline = arrived.Add(milliseconds(m.timeout))
	}
	if c.method == nil {
		a.answerFault(c, Error{"internal", fmt.Sprintf("unknown method %q", m.method)})
		return
	}
	a.mu.Lock()
	a.calls[c.id] = c
	a.mu.Unlock()
	go a.run(c)
}

// Runs a method in its goroutine and answers.
func (a *App) run(c *callContext) {
	hasReturned := false
	defer func() {
		if !hasReturned {
			// Without a value it is runtime.Goexit.
			a.panicked(c, recover(), debug.Stack())
		}
	}()
	to := newAnswer()
	to.Write([]byte{0, 0, 0, 0})
	to.WriteString(`{"id":`)
	var digits [20]byte
	to.Write(strconv.AppendUint(digits[:0], c.id, 10))
	to.WriteString(`,"result":`)
	err := c.method.call(c, to)
	hasReturned = true
	if err != nil {
		a.failed(c, err, to.err)
	} else {
		to.WriteByte('}')
		if length := to.Len() - 4; length > maxFrame {
			a.answerFault(c, Error{"internal", "the result is too long"})
		} else {
			binary.LittleEndian.PutUint32(to.Bytes(), uint32(length))
			a.answer(c, to.Bytes())
		}
	}
	to.free()
}

func (a *App) failed(c *callContext, err, forOperator error) {
	fault, unexpected := faultOf(err)
	if forOperator != nil {
		logError("method %s: %v", c.Method(), forOperator)
	} else if unexpected && !(c.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded))) {
		// A method that stops because of its context has no bug.
		logError("method %s: %s: %v", c.Method(), typeName(err), err)
	}
	a.answerFault(c, fault)
}

// Answers, and ends the process after the other calls: what they share may be damaged.
func (a *App) panicked(c *callContext, value any, stack []byte) {
	logError("method %s: panic: %v\n%s", c.Method(), value, stack)
	a.mu.Lock()
	isFirst := !a.isDying
	a.isDying = true
	if isFirst {
		// The worker sends clients elsewhere: no method begins from now on.
		a.health = "a method has panicked"
		a.appendHealth()
	}
	a.mu.Unlock()
	name := typeName(value)
	if value == nil {
		name = "runtime.Goexit"
	}
	a.answerFault(c, Error{"crashed", name})
	if !isFirst {
		return
	}
	go func() {
		time.Sleep(panicGrace)
		os.Exit(exitPanic)
	}()
	a.mu.Lock()
	for len(a.calls) > 0 || a.isWriting || len(a.out) > 0 {
		a.progress.Wait()
	}
	os.Exit(exitPanic)
}

func (a *App) answerFault(c *callContext, fault Error) {
	type error_ struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	type answer struct {
		ID    uint64 `json:"id"`
		Error error_ `json:"error"`
	}
	c.end(context.Canceled)
	a.mu.Lock()
	if !a.append(answer{c.id, error_{fault.Code, cut(fault.Message)}}) {
		a.append(answer{c.id, error_{Code: fault.Code}})
	}
	a.answered(c)
}

// Sends a frame with its length.
func (a *App) answer(c *callContext, frame []byte) {
	c.end(context.Canceled)
	a.mu.Lock()
	a.out = append(a.out, frame...)
	a.answered(c)
}

// The caller holds the lock, and loses it.
func (a *App) answered(c *callContext) {
	delete(a.calls, c.id)
	isLast := a.hasToStop && len(a.calls) == 0
	stopsBy := a.stopsBy
	a.flush()
	if isLast {
		a.finish(stopsBy)
	}
}

// Calls the functions of Stop once, and ends the process, at the latest at this time.
func (a *App) finish(deadline time.Time) {
	a.ending.Do(func() {
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		go func() {
			<-ctx.Done()
			os.Exit(0)
		}()
		go func() {
			for _, call := range a.onStop {
				if err := protect(ctx, call); err != nil {
					logError("a function of Stop failed: %v", err)
				}
			}
			a.drain()
			cancel()
		}()
	})
}

// Waits until what has been answered is written.
func (a *App) drain() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.isWriting || len(a.out) > 0 {
		a.progress.Wait()
	}
}

// Reads frames.
type reader struct {
	buffer     []byte
	start, end int
	// When the last bytes arrived.
	arrived time.Time
}

// Returns the next frame, which is valid until the next call.
func (r *reader) next(file *os.File) ([]byte, error) {
	for {
		have := r.end - r.start
		need := 4
		if have >= 4 {
			need = 4 + int(binary.LittleEndian.Uint32(r.buffer[r.start:]))
			if have >= need {
				frame := r.buffer[r.start+4 : r.start+need]
				r.start += need
				return frame, nil
			}
		}
		r.makeRoom(need)
		n, err := file.Read(r.buffer[r.end:])
		if n <= 0 && err != nil {
			return nil, err
		}
		r.end += n
		r.arrived = time.Now()
	}
}

// Moves what has arrived of a frame to the front of a buffer that the frame fits into.
func (r *reader) makeRoom(need int) {
	arrived := r.buffer[r.start:r.end]
	switch {
	case need > len(r.buffer):
		r.buffer = make([]byte, need)
	case len(r.buffer) > 16*keptBuffer && need <= keptBuffer && len(arrived) <= keptBuffer:
		r.buffer = make([]byte, keptBuffer)
	}
	r.end = copy(r.buffer, arrived)
	r.start = 0
}
