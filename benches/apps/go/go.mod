module bench

go 1.19

require fdpassd v0.0.0

replace fdpassd => ../../../sdk/go
