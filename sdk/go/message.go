package fdpassd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
)

// A frame of the worker. Slices are parts of the frame.
type message struct {
	kind    messageKind
	number  uint64 // its meaning depends on the kind
	client  uint64
	attempt uint64
	timeout uint64 // in ms
	pid     uint64
	uid     uint64
	gid     uint64
	method  []byte
	peer    []byte
	via     []byte
	why     []byte
	params  []byte // nil: the client sent none

	hasMethod, hasTimeout, hasVia, isUnix bool
}

type messageKind int

const (
	isOther   messageKind = iota
	isRequest             // the number is its id
	isCancel              // the number is an id
	isProbe               // the number is for the answer
	isClosed              // the number is a client
	isStop                // the number is in ms
)

var errMalformed = errors.New("not a JSON object")

// Reads a frame: by hand, because encoding/json takes longer for these members than for most params.
func (m *message) parse(frame []byte) error {
	*m = message{attempt: 1}
	s := scanner{frame, 0}
	if s.next() != '{' {
		return errMalformed
	}
	s.at++
	if s.next() == '}' {
		return nil
	}
	for {
		name, err := s.text()
		if err != nil {
			return err
		}
		if s.next() != ':' {
			return errMalformed
		}
		s.at++
		s.next()
		if string(name) == "params" {
			// The last member, byte for byte as the client sent it.
			end := bytes.LastIndexByte(frame, '}')
			if end < s.at {
				return errMalformed
			}
			m.params = bytes.TrimRight(frame[s.at:end], " \t\r\n")
			return m.finish()
		}
		if err := m.member(string(name), &s); err != nil {
			return fmt.Errorf("member %q: %w", name, err)
		}
		switch s.next() {
		case ',':
			s.at++
			s.next()
		case '}':
			return m.finish()
		default:
			return errMalformed
		}
	}
}

func (m *message) finish() error {
	if m.hasMethod {
		m.kind = isRequest
	} else if m.kind == isRequest {
		m.kind = isOther
	}
	return nil
}

func (m *message) member(name string, s *scanner) (err error) {
	switch name {
	case "id":
		m.kind = isRequest
		m.number, err = s.number()
	case "in":
		m.hasMethod = true
		m.method, err = s.text()
	case "client":
		m.client, err = s.number()
	case "peer":
		m.peer, err = s.text()
	case "via":
		m.hasVia = true
		m.via, err = s.text()
	case "attempt":
		m.attempt, err = s.number()
	case "timeout":
		m.hasTimeout = true
		m.timeout, err = s.number()
	case "pid":
		m.isUnix = true
		m.pid, err = s.number()
	case "uid":
		m.uid, err = s.number()
	case "gid":
		m.gid, err = s.number()
	case "cancel":
		m.kind = isCancel
		m.number, err = s.number()
	case "why":
		m.why, err = s.text()
	case "probe":
		m.kind = isProbe
		m.number, err = s.number()
	case "closed":
		m.kind = isClosed
		m.number, err = s.number()
	case "stop":
		m.kind = isStop
		m.number, err = s.number()
	default:
		err = s.skip()
	}
	return err
}

type scanner struct {
	input []byte
	at    int
}

// Returns the next byte that is not white space, or 0 at the end.
func (s *scanner) next() byte {
	for s.at < len(s.input) {
		switch c := s.input[s.at]; c {
		case ' ', '\t', '\r', '\n':
			s.at++
		default:
			return c
		}
	}
	return 0
}

func (s *scanner) number() (uint64, error) {
	begin := s.at
	for s.at < len(s.input) && '0' <= s.input[s.at] && s.input[s.at] <= '9' {
		s.at++
	}
	return strconv.ParseUint(string(s.input[begin:s.at]), 10, 64)
}

// Returns the contents of a string.
func (s *scanner) text() ([]byte, error) {
	if s.at >= len(s.input) || s.input[s.at] != '"' {
		return nil, errMalformed
	}
	begin := s.at
	hasEscapes := false
	for s.at++; s.at < len(s.input); s.at++ {
		switch s.input[s.at] {
		case '\\':
			hasEscapes = true
			s.at++
		case '"':
			s.at++
			if !hasEscapes {
				return s.input[begin+1 : s.at-1], nil
			}
			var text string
			err := json.Unmarshal(s.input[begin:s.at], &text)
			return []byte(text), err
		}
	}
	return nil, errMalformed
}

// Skips a value.
func (s *scanner) skip() error {
	for depth := 0; s.at < len(s.input); {
		switch s.input[s.at] {
		case '"':
			if _, err := s.text(); err != nil {
				return err
			}
			if depth == 0 {
				return nil
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return nil
			}
			depth--
			if depth == 0 {
				s.at++
				return nil
			}
		case ',':
			if depth == 0 {
				return nil
			}
		}
		s.at++
	}
	return errMalformed
}
