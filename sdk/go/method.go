package fdpassd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
)

// A method, as hello lists it.
type method struct {
	Name       string `json:"name"`
	Idempotent bool   `json:"idempotent"`
	Reply      string `json:"reply,omitempty"`

	// Appends the result as JSON.
	call func(c *callContext, to *answer) error
}

// A MethodOption is Idempotent or Reply.
type MethodOption func(*method)

// Idempotent marks a method that may run twice for one request, because the first process died.
func Idempotent(m *method) { m.Idempotent = true }

// Reply sets the name of the method's replies, which is otherwise its own name and _r.
func Reply(name string) MethodOption {
	return func(m *method) {
		m.Reply = name
	}
}

// Method adds a method, which must be done before Run. Each call has its own goroutine.
//
// Params are decoded, and the result encoded, as encoding/json does; missing params are null. A json.RawMessage is passed
// on byte for byte. If params do not fit P, the client gets bad_params.
//
// An *Error that call returns is sent to the client. Any other error is logged, and the client gets crashed with its
// type. After a panic the client gets crashed, too, and the process ends as soon as its other calls are answered,
// because their state may be damaged.
//
// The context ends when the client has left or time is up, and after call has returned.
func Method[P, R any](app *App, name string, call func(ctx context.Context, params P) (R, error), options ...MethodOption) {
	m := &method{Name: name}
	for _, option := range options {
		option(m)
	}
	m.call = func(c *callContext, to *answer) error {
		var params P
		if err := decode(c.params, &params); err != nil {
			return err
		}
		result, err := call(c, params)
		if err != nil {
			return err
		}
		return to.result(result)
	}
	app.add(m)
}

func (a *App) add(m *method) {
	a.mustNotRun()
	switch _, isDuplicate := a.methods[m.Name]; {
	case !isMethodName(m.Name):
		a.mistake("%q is not a valid method name: [a-z][a-z0-9_.-]{0,63}, but not \"error\"", m.Name)
	case m.Name == "ping" || m.Name == "methods":
		a.mistake("the daemon has its own method %q", m.Name)
	case isDuplicate:
		a.mistake("duplicate method %q", m.Name)
	case m.Reply != "" && !isMethodName(m.Reply):
		a.mistake("%q is not a valid reply name: [a-z][a-z0-9_.-]{0,63}, but not \"error\"", m.Reply)
	}
	a.methods[m.Name] = m
	a.hello.Methods = append(a.hello.Methods, m)
}

func isMethodName(name string) bool { return isName(name, "_.-", 64) && name != "error" }

func decode(params []byte, into any) error {
	if raw, ok := into.(*json.RawMessage); ok {
		*raw = params
		return nil
	}
	if params == nil {
		params = []byte("null")
	}
	if err := json.Unmarshal(params, into); err != nil {
		return &Error{"bad_params", cut(strings.TrimPrefix(err.Error(), "json: "))}
	}
	return nil
}

// An answer while it is written: the frame with its length.
type answer struct {
	bytes.Buffer
	encoder *json.Encoder
	// The error for the operator if the result cannot be represented as JSON.
	err error
}

var answers = sync.Pool{New: func() any {
	a := new(answer)
	a.encoder = json.NewEncoder(a)
	a.encoder.SetEscapeHTML(false)
	return a
}}

// Larger buffers are not kept.
const keptBuffer = 64 << 10

func newAnswer() *answer {
	a := answers.Get().(*answer)
	a.Reset()
	a.err = nil
	return a
}

func (a *answer) free() {
	if a.Cap() <= keptBuffer {
		answers.Put(a)
	}
}

func (a *answer) result(result any) error {
	if raw, ok := result.(json.RawMessage); ok {
		if raw == nil {
			raw = json.RawMessage("null")
		}
		a.Write(raw)
		return nil
	}
	if err := a.encoder.Encode(result); err != nil {
		a.err = fmt.Errorf("the result cannot be represented as JSON: %w", err)
		return &Error{"internal", "the result cannot be represented as JSON"}
	}
	a.Truncate(a.Len() - 1) // the line feed of the encoder
	return nil
}
