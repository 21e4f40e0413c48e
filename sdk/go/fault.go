package fdpassd

import (
	"errors"
	"fmt"
	"strings"
)

// An Error is sent to the client of a call. The connection stays open.
type Error struct {
	// For programs: [a-z][a-z0-9_]{0,63}. Of the codes of the daemon only bad_params, internal and crashed are allowed;
	// with others the client gets internal.
	Code string
	// A sentence for people.
	Message string
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// Fault returns an *Error.
func Fault(code, message string) error { return &Error{code, message} }

// Faultf returns an *Error with a formatted message.
func Faultf(code, format string, arguments ...any) error {
	return &Error{code, fmt.Sprintf(format, arguments...)}
}

// Longer messages are cut: a frame must not exceed the limit of the worker.
const maxMessage = 1000

func cut(text string) string {
	if len(text) <= maxMessage {
		return text
	}
	return strings.ToValidUTF8(text[:maxMessage], "") + "…"
}

// Returns why methods cannot use this code, or "" if they can.
func codeProblem(code string) string {
	switch code {
	case "bad_request", "unknown_method", "too_large", "timeout", "overloaded", "shutting_down":
		return fmt.Sprintf("the code %q is reserved for the daemon", code)
	}
	if !isName(code, "_", 64) {
		return fmt.Sprintf("%q is not a valid code: [a-z][a-z0-9_]{0,63}", code)
	}
	return ""
}

// Returns whether the text consists of a lower-case letter, then lower-case letters, digits and these others.
func isName(text, others string, max int) bool {
	if text == "" || len(text) > max || text[0] < 'a' || text[0] > 'z' {
		return false
	}
	for _, c := range []byte(text) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && strings.IndexByte(others, c) < 0 {
			return false
		}
	}
	return true
}

// Returns the type of a value. Its text is not for clients: it may contain secrets.
func typeName(value any) string {
	return strings.TrimPrefix(fmt.Sprintf("%T", value), "*")
}

// Returns the error for the client. `unexpected` is true if the method did not return a valid fault.
func faultOf(err error) (fault Error, unexpected bool) {
	var own *Error
	if !errors.As(err, &own) || own == nil {
		return Error{"crashed", typeName(err)}, true
	}
	if problem := codeProblem(own.Code); problem != "" {
		return Error{"internal", problem}, true
	}
	return *own, false
}
