"""What others report of the number of attention layers, as they print it."""

# Dao and Gu 2024, table 2: attention layers of 48, and perplexity; 350M parameters, 7B tokens.
MAMBA2 = {
    0: 8.60, 1: 8.38, 2: 8.32, 3: 8.29, 4: 8.29, 5: 8.28, 6: 8.26, 7: 8.27, 9: 8.28, 11: 8.30,
    15: 8.34, 24: 8.50,
}  # fmt: skip
MAMBA2_TRANSFORMER = 8.68  # in the same table: attention and MLPs, no Mamba-2

# Lieber et al. 2024, table 4: 1.3B parameters, 250B tokens; mean log-probability of C4's text.
JAMBA_C4 = {"attention": -0.543, "Mamba": -0.543, "1 in 4": -0.533, "1 in 8": -0.533}

# Ren et al. 2024, table 3: perplexity at 4,096 tokens, 438M parameters, 20B tokens.
SAMBA = {"attention": 11.14, "window": 11.12, "Mamba": 10.70, "Samba": 10.06}
