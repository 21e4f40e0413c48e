package fdpassd

import (
	"bytes"
	"fmt"
	"testing"
)

func TestMessages(t *testing.T) {
	for text, want := range map[string]string{
		`{"id":7,"in":"add","client":4711,"peer":"a:1","attempt":2,"timeout":5,"params":{"a": 1}}`: `1 7 add 4711 a:1 2 5 {"a": 1}`,
		` { "id" : 7 , "in" : "add" , "params" : 1 } `:                                             `1 7 add 0  1 0 1`,
		`{"id":7,"in":"add"}`:                                          `1 7 add 0  1 0 -`,
		`{"id":7,"in":"a\u0064d","peer":"\"\\"}`:                       `1 7 add 0 "\ 1 0 -`,
		`{"more":{"a":["}",{}],"b":-1.5e3},"id":1,"no":null,"in":"a"}`: `1 1 a 0  1 0 -`,
		`{"cancel":7,"why":"gone"}`:                                    `2 7  0  1 0 -`,
		`{"probe":18446744073709551615}`:                               `3 18446744073709551615  0  1 0 -`,
		`{"closed":1}`:                                                 `4 1  0  1 0 -`,
		`{"stop":30000}`:                                               `5 30000  0  1 0 -`,
		`{}`:                                                           `0 0  0  1 0 -`,
		`{"later":true}`:                                               `0 0  0  1 0 -`,
		`{"id":9}`:                                                     `0 9  0  1 0 -`,
		`{"id":1,"in":"a","params":"}"}`:                               `1 1 a 0  1 0 "}"`,
		"{\"id\":1,\"in\":\"a\",\"params\":\t[ 1\n, 2 ]\r\n}":           "1 1 a 0  1 0 [ 1\n, 2 ]",
		`{"id":1,"in":"a","x":"\",\"params\":1","params":["params",1]}`: `1 1 a 0  1 0 ["params",1]`,
	} {
		var m message
		if err := m.parse([]byte(text)); err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		params := "-"
		if m.params != nil {
			params = string(m.params)
		}
		equal(t, fmt.Sprintf("%d %d %s %d %s %d %d %s", m.kind, m.number, m.method, m.client, m.peer, m.attempt, m.timeout, params), want)
	}
	for _, text := range []string{
		"", "1", "[]", "{", `{"id"`, `{"id":`, `{"id":1`, `{"id":1,`, `{"id":-1}`, `{"id":1.5}`, `{"id":"1"}`, `{"in":1}`,
		`{"in":"a`, `{"in":"a\`, `{"id":18446744073709551616}`, `{id:1}`, `{"id":1 "in":"a"}`, `{"params":`, `{"x":[`, `{"x":"`,
	} {
		var m message
		if err := m.parse([]byte(text)); err == nil {
			t.Errorf("%s: no error", text)
		}
	}
}

func FuzzMessage(f *testing.F) {
	f.Add([]byte(`{"id":7,"in":"add","client":4711,"peer":"a:1","attempt":2,"timeout":5,"params":{"a": 1}}`))
	f.Add([]byte(`{"cancel":7,"why":"gone","more":[{"a":"\""}]}`))
	f.Fuzz(func(t *testing.T, frame []byte) {
		var m message
		if err := m.parse(frame); err == nil && !bytes.Contains(frame, m.params) {
			t.Errorf("%q has the params %q", frame, m.params)
		}
	})
}
