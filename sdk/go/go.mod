module fdpassd

go 1.19
