package main
import "context"
func (b *bench) agents(ctx context.Context) error { return nil }
func (b *bench) manyProbes(ctx context.Context) error { return nil }
func serverMain() {}
