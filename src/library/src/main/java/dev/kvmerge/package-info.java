/**
 * kvmerge: a llama.cpp context held within a fixed number of KV cells. The packages, from the inside out:
 * {@code bindings} (generated), {@code llama} and {@code kernels} over them, {@code attention}, {@code cache},
 * {@code strategy}, {@code eval}, {@code report}, {@code models} and {@code cli}. docs/architecture.md draws the
 * arrows.
 */
package dev.kvmerge;
